"""Chat templates with marked answers, as our tasks and as transformers' tokenizers have them."""

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llm_data.tasks.chat import Rendering
from llm_data.templates import SpecialTokens, TemplateSource, Thinking

# A line break after the end token, outside the answer, as in Qwen's format.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No character between a special token and an answer.
TIGHT = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>' }}"
    "{% generation %}{{ m.content + '</s>' }}{% endgeneration %}{% else %}"
    "{{ '<|im_end|>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)
# Llama 2's way: a space, outside the answer, that its tokenizer joins to the answer's first word.
SPACED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' }}"
    "{% generation %}{{ m.content + '</s>' }}{% endgeneration %}{% else %}"
    "{{ '<s>[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ' }}{% endif %}"
)


def rendering(text: str, thinking: Thinking = Thinking.KEEP) -> Rendering:
    """A template of the user's own."""
    return Rendering(
        template=TemplateSource(name="own", text=text),
        special=SpecialTokens(bos="<s>", eos="</s>"),
        thinking=thinking,
    )


def of_transformers(tokenizer: Tokenizer, text: str) -> PreTrainedTokenizerFast:
    """What applies the same template with transformers."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=text, bos_token="<s>", eos_token="</s>"
    )
