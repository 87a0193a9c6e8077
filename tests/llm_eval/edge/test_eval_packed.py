"""Packed products against the same product in float64, and which layers of a model they serve."""

import pytest
import torch
from torch import nn

from llm_eval.harness.packed import packed
from llm_eval.harness.passes import output_at

WIDE = 1 << 14


def tiny(**shape):
    """A llama whose output layer alone, of 2^19 weights, is large enough to be packed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "vocab_size": WIDE, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(**sizes | shape, bos_token_id=None, eos_token_id=0)).eval()


def layers_packed(model):
    return {name for name, part in model.named_modules() if "forward" in vars(part)}


@pytest.mark.parametrize("rows", [(1,), (7,), (2, 3), (33,)])
def test_a_packed_product_is_that_of_float64(rows):
    model = tiny()
    model.lm_head = nn.Linear(32, WIDE)
    x = torch.randn(*rows, 64)[..., ::2]
    with torch.inference_mode(), packed(model):
        assert layers_packed(model) == {"lm_head"}
        found = model.lm_head(x)
    head = model.lm_head
    exact = x.double() @ head.weight.double().T + head.bias.double()
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=0)


def test_hooks_of_a_packed_layer_still_choose_its_places():
    model, tokens = tiny(), torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        whole = model(input_ids=tokens).logits.flatten(0, 1)
        with packed(model), output_at(model, [3, 9]):
            found = model(input_ids=tokens).logits
    torch.testing.assert_close(found, whole[None, [3, 9]], atol=1e-4, rtol=0)


def test_the_output_layer_is_packed_first_then_what_fits():
    shape = {"hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 2}
    model = tiny(**shape, vocab_size=2048)
    mib = 1 << 20
    with packed(model):
        projections = {
            f"model.layers.{layer}.mlp.{name}_proj"
            for layer in range(2)
            for name in ("gate", "up", "down")
        }
        # Attention's 128x128 are too small to gain.
        assert layers_packed(model) == {"lm_head"} | projections
    with packed(model, max_bytes=mib):
        assert layers_packed(model) == {"lm_head"}
    with packed(model, max_bytes=3 * mib // 2):
        assert layers_packed(model) == {"lm_head", "model.layers.0.mlp.gate_proj"}


def test_layers_are_as_they_were_afterwards_even_after_an_error():
    model = tiny()
    with pytest.raises(IndexError), packed(model):
        model(input_ids=torch.tensor([[WIDE]]))
    assert not layers_packed(model)


def test_other_types_and_layers_that_a_library_changed_are_left_alone():
    class Derived(nn.Linear):
        """As PEFT's and bitsandbytes' are."""

    other, changed = tiny().bfloat16(), tiny()
    changed.lm_head = Derived(32, WIDE, bias=False)
    for model in (other, changed):
        with packed(model):
            assert not layers_packed(model)
