"""The references of the norms against transformers, torch and hand calculation."""

import math

import pytest
import torch

from llm_kernels_npu.ops.add_rms_norm.reference import add_rms_norm
from llm_kernels_npu.ops.layer_norm.reference import layer_norm

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def test_add_rms_norm_by_hand():
    # 1 + 2 = 3 and 3 + 1 = 4, whose rms is sqrt(12.5); eps 0.
    x, residual = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])
    normed, total = add_rms_norm(x, residual, torch.tensor([1.0, 2.0]), eps=0.0)
    assert total.tolist() == [3.0, 4.0]
    torch.testing.assert_close(normed, torch.tensor([3.0, 8.0]) / math.sqrt(12.5), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_rms_norm_equals_the_two_steps_of_a_transformers_llama_layer(seed, dtype):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    theirs = LlamaRMSNorm(33, eps=1e-5).to(dtype)
    theirs.weight.data = torch.ones(33, dtype=dtype)
    x, residual = torch.randn(2, 4, 5, 33, generator=seed).to(dtype).unbind()
    normed, total = add_rms_norm(x, residual, theirs.weight, eps=1e-5)
    assert torch.equal(total, residual + x)
    torch.testing.assert_close(normed, theirs(residual + x), **CLOSE)


def test_layer_norm_by_hand():
    # Mean 2, mean square of the distances 1: (-1, 1) scaled by 2 and shifted.
    found = layer_norm(torch.tensor([1.0, 3.0]), torch.full((2,), 2.0), torch.ones(2), eps=0.0)
    assert found.tolist() == [-1.0, 3.0]


@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm_equals_torch(seed, with_bias):
    x = torch.randn(2, 5, 33, generator=seed) * 3 + 1
    weight, bias = torch.randn(2, 33, generator=seed).unbind()
    chosen = bias if with_bias else None
    theirs = torch.nn.functional.layer_norm(x, (33,), weight, chosen, 1e-5)
    torch.testing.assert_close(layer_norm(x, weight, chosen, eps=1e-5), theirs, **CLOSE)


def test_layer_norm_with_offset_equals_transformers_nemotron(seed):
    from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

    theirs = NemotronLayerNorm1P(17, eps=1e-5)
    theirs.weight.data = torch.randn(17, generator=seed)
    theirs.bias.data = torch.randn(17, generator=seed)
    x = torch.randn(4, 17, generator=seed)
    found = layer_norm(x, theirs.weight, theirs.bias, eps=1e-5, offset=1.0)
    torch.testing.assert_close(found, theirs(x), **CLOSE)
