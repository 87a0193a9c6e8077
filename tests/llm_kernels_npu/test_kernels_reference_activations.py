"""The reference of geglu against transformers."""

import pytest
import torch

from llm_kernels_npu.ops.geglu.reference import geglu


@pytest.mark.parametrize(
    ("activation", "approximate"), [("gelu", "none"), ("gelu_pytorch_tanh", "tanh")]
)
def test_geglu_equals_a_transformers_llama_mlp_with_gelu(seed, activation, approximate):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    sizes = {"hidden_size": 9, "num_attention_heads": 3, "intermediate_size": 15}
    mlp = LlamaMLP(LlamaConfig(**sizes, hidden_act=activation))
    x = torch.randn(2, 3, 9, generator=seed) * 3
    joined = torch.cat((mlp.gate_proj(x), mlp.up_proj(x)), dim=-1)
    found = mlp.down_proj(geglu(joined, approximate=approximate))
    torch.testing.assert_close(found, mlp(x), rtol=1e-6, atol=1e-6)


def test_the_two_formulas_differ():
    x = torch.tensor([[2.0, 1.0]])
    assert geglu(x).item() == pytest.approx(1.9544997, abs=1e-6)  # 2 * Φ(2)
    assert abs(geglu(x, approximate="tanh").item() - 1.9544997) > 1e-5
