"""Many prompts continued together, against transformers' generate of each prompt alone."""

import random

import pytest

from llm_eval.blocks import plan_prompts

# Moderate weights: logits differ enough that rounding never decides between two tokens.
SHAPE = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SHAPE | {"intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.3}
# An output layer that is packed; windows shorter than the prompts; positions that are learned;
# distances instead of positions.
FAMILIES = {
    "llama": ("LlamaConfig", LLAMA),
    "wide llama": ("LlamaConfig", LLAMA | {"vocab_size": 1 << 14}),
    "mistral": ("MistralConfig", LLAMA | {"sliding_window": 16}),
    "gemma3": ("Gemma3TextConfig", LLAMA | {"head_dim": 8, "sliding_window": 16,
               "layer_types": ["sliding_attention", "full_attention"]}),
    "gpt2": ("GPT2Config", {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4,
             "n_positions": 256, "initializer_range": 0.3}),
    "bloom": ("BloomConfig", {"vocab_size": 320, "hidden_size": 32, "n_layer": 2, "n_head": 4,
              "initializer_range": 0.3}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    from tiny_lm import make_tokenizer

    folder = tmp_path_factory.mktemp("generation")
    make_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def tiny(family):
    import torch
    import transformers

    name, shape = FAMILIES[family]
    torch.manual_seed(1)
    config = getattr(transformers, name)(**shape, bos_token_id=None, eos_token_id=0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def asked():
    """Two sets of prompts that begin alike, and some that do not, with their limits."""
    draw = random.Random(0)

    def tokens(least, most):
        return tuple(draw.choices(range(1, 320), k=draw.randint(least, most)))

    prompts = []
    for count, beginning in ((14, tokens(40, 40)), (12, tokens(30, 30)), (10, ())):
        prompts += [beginning + tokens(1, 25) for _ in range(count)]
    return prompts, [draw.randint(1, 30) for _ in prompts]


def alone(model, tokenizer, prompt, limit, stops):
    """What transformers generates, up to the token that completes a stop string."""
    import torch

    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), pad_token_id=0,
        max_new_tokens=limit, do_sample=False,
    )[0, len(prompt) :].tolist()  # fmt: skip
    for end in range(1, len(out) + 1):
        if any(stop in tokenizer.decode(out[:end]) for stop in stops):
            return out[:end]
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_come_and_go_are_continued_as_each_alone(family, tokenizer):
    from llm_eval.harness.generation import Continuer, can_continue

    model, stops = tiny(family), ["e", "th", "\n"]
    assert can_continue(model)
    prompts, limits = asked()
    (part,) = plan_prompts(prompts, limits)
    assert sorted(one.number for one in part) == list(range(len(prompts)))
    assert {one.prompt.shared for one in part} == {40, 30, 0}

    continuer = Continuer(model, tokenizer, max_rows=2)
    found = continuer.continue_greedily([one.prompt for one in part], stops=stops)

    expected = [
        alone(model, tokenizer, prompts[one.number], limits[one.number], stops) for one in part
    ]
    assert found == expected
    # The test is of rows that end at all times, for all reasons.
    assert len({len(tokens) for tokens in expected}) > 6
