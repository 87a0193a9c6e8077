"""A Hugging Face tokenizer as llm-infer's `Tokenizer`."""

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from llm_infer.engine import Message
from llm_infer.errors import InferError


class HfTokenizer:
    """Encodes with the special tokens the model wants; decodes without any."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether the folder brought a chat template."""
        return self._tokenizer.chat_template is not None

    @property
    def vocab_size(self) -> int:
        """Added tokens included."""
        return len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt."""
        return list(self._tokenizer.encode(text))

    def encode_chat(self, messages: Sequence[Message], template: str | None) -> list[int]:
        """Tokens of a conversation up to where the answer starts."""
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except TemplateError as error:
            raise InferError(f"chat template: {error}") from error
        return list(self._tokenizer.encode(str(text), add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens, spaces left as they are."""
        return str(
            self._tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
