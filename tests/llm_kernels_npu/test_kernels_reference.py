"""The references against independent implementations: transformers, torch, hand calculation."""

import math

import pytest
import torch

from llm_kernels_npu.ops.attention.reference import attention, visible
from llm_kernels_npu.ops.cross_entropy.reference import cross_entropy
from llm_kernels_npu.ops.linear_cross_entropy.reference import linear_cross_entropy
from llm_kernels_npu.ops.rms_norm.reference import rms_norm
from llm_kernels_npu.ops.rope.cases import tables
from llm_kernels_npu.ops.rope.reference import rope
from llm_kernels_npu.ops.swiglu.reference import swiglu

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def test_rms_norm_by_hand():
    # rms of (3, 4) is sqrt(12.5); eps 0.
    found = rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), eps=0.0)
    expected = torch.tensor([3.0, 8.0]) / math.sqrt(12.5)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_rms_norm_equals_transformers_llama(seed):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    theirs = LlamaRMSNorm(33, eps=1e-5)
    theirs.weight.data = torch.randn(33, generator=seed)
    x = torch.randn(2, 5, 33, generator=seed)
    torch.testing.assert_close(rms_norm(x, theirs.weight, eps=1e-5), theirs(x), **CLOSE)


def test_rms_norm_with_offset_equals_transformers_gemma(seed):
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    theirs = GemmaRMSNorm(17, eps=1e-6)
    theirs.weight.data = torch.randn(17, generator=seed)
    x = torch.randn(4, 17, generator=seed).bfloat16()
    found = rms_norm(x, theirs.weight, eps=1e-6, offset=1.0)
    torch.testing.assert_close(found, theirs(x), rtol=0, atol=0)


def test_rms_norm_of_large_float16_does_not_overflow():
    x = torch.full((1, 8), 6e4, dtype=torch.float16)
    found = rms_norm(x, torch.ones(8, dtype=torch.float16), eps=1e-6)
    torch.testing.assert_close(found, torch.ones_like(x))


def test_swiglu_equals_transformers_llama_mlp(seed):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    mlp = LlamaMLP(LlamaConfig(hidden_size=9, num_attention_heads=3, intermediate_size=15))
    x = torch.randn(2, 3, 9, generator=seed)
    joined = torch.cat((mlp.gate_proj(x), mlp.up_proj(x)), dim=-1)
    torch.testing.assert_close(mlp.down_proj(swiglu(joined)), mlp(x), **CLOSE)


def test_rope_half_equals_transformers_llama(seed):
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama as llama

    config = LlamaConfig(hidden_size=48, num_attention_heads=3, num_key_value_heads=3)
    x = torch.randn(2, 3, 11, 16, generator=seed)
    cos, sin = llama.LlamaRotaryEmbedding(config)(x, torch.arange(11)[None])
    theirs, _ = llama.apply_rotary_pos_emb(x, x, cos, sin)
    found = rope(x, cos[:, None], sin[:, None])
    torch.testing.assert_close(found, theirs, **CLOSE)


def test_rope_tables_equal_transformers_llama():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=48, num_attention_heads=3)
    theirs = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(11)[None])
    for ours, other in zip(tables(11, 16, interleaved=False), theirs, strict=True):
        torch.testing.assert_close(ours[:, :, 0], other, rtol=1e-5, atol=1e-5)


def test_rope_interleaved_and_partial_equal_transformers_gptj(seed):
    from transformers.models.gptj import modeling_gptj as gptj

    x = torch.randn(2, 11, 3, 20, generator=seed)
    table = gptj.create_sinusoidal_positions(11, 12)
    sin, cos = table[None].chunk(2, dim=-1)
    theirs = torch.cat((gptj.apply_rotary_pos_emb(x[..., :12], sin, cos), x[..., 12:]), dim=-1)
    ours_cos, ours_sin = tables(11, 12, interleaved=True)
    found = rope(x, ours_cos, ours_sin, interleaved=True)
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


def test_rope_takes_megatron_layout_and_equals_megatron_core(seed):
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    x = torch.randn(7, 2, 3, 16, generator=seed)
    angles = torch.randn(7, 1, 1, 4, generator=seed)
    for interleaved in (False, True):
        full = angles.repeat_interleave(2, -1) if interleaved else torch.cat((angles, angles), -1)
        theirs = _apply_rotary_pos_emb_bshd(x, full, rotary_interleaved=interleaved)
        found = rope(x, full.cos(), full.sin(), interleaved=interleaved)
        torch.testing.assert_close(found, theirs, **CLOSE)


def test_cross_entropy_by_hand():
    # Uniform logits: log 4; and exp(1), 1, 1: log(e + 2) - 1.
    logits = torch.tensor([[2.0, 2.0, 2.0, 2.0], [1.0, 0.0, 0.0, float("-inf")]])
    found = cross_entropy(logits, torch.tensor([3, 0]))
    expected = torch.tensor([math.log(4), math.log(math.e + 2) - 1])
    torch.testing.assert_close(found, expected, **CLOSE)


def test_cross_entropy_equals_torch_and_ignores(seed):
    logits = torch.randn(9, 31, generator=seed) * 8
    targets = torch.tensor([3, -100, 30, 0, -100, 7, 8, 9, 1])
    theirs = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, targets), theirs, **CLOSE)
    other = targets.masked_fill(targets == -100, -1)
    torch.testing.assert_close(cross_entropy(logits, other, ignore_index=-1), theirs, **CLOSE)


def test_linear_cross_entropy_equals_torch_in_two_steps(seed):
    hidden, weight = torch.randn(9, 6, generator=seed), torch.randn(31, 6, generator=seed)
    targets = torch.randint(31, (9,), generator=seed)
    logits = torch.nn.functional.linear(hidden, weight)
    theirs = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets), theirs, **CLOSE)


def test_causal_mask_ends_at_the_last_key():
    found = visible(2, 4, window=None, device=torch.device("cpu"))
    assert found.tolist() == [[True, True, True, False], [True, True, True, True]]


def test_window_counts_the_query_itself():
    found = visible(3, 3, window=2, device=torch.device("cpu"))
    assert found.tolist() == [[True, False, False], [True, True, False], [False, True, True]]


def test_attention_window_equals_transformers_mask():
    from transformers import MistralConfig
    from transformers.masking_utils import create_sliding_window_causal_mask

    config = MistralConfig(sliding_window=5, attn_implementation="sdpa")
    theirs = create_sliding_window_causal_mask(
        config=config,
        inputs_embeds=torch.zeros(1, 12, 4),
        attention_mask=None,
        past_key_values=None,
        position_ids=torch.arange(12)[None],
    )
    assert torch.equal(theirs[0, 0], visible(12, 12, window=5, device=torch.device("cpu")))


def test_attention_with_groups_and_scale_equals_torch(seed):
    q = torch.randn(2, 7, 6, 8, generator=seed)
    k, v = torch.randn(2, 2, 7, 2, 8, generator=seed)
    repeated = [x.repeat_interleave(3, 2).transpose(1, 2) for x in (k, v)]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), *repeated, is_causal=True, scale=0.21
    )
    found = attention(q, k, v, causal=True, scale=0.21)
    torch.testing.assert_close(found, theirs.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_attention_with_softcap_equals_transformers_gemma2(seed, softcap):
    from transformers import Gemma2Config
    from transformers.models.gemma2 import modeling_gemma2 as gemma2

    config = Gemma2Config(head_dim=8, query_pre_attn_scalar=8)
    module = gemma2.Gemma2Attention(config, 0).eval()
    module.num_key_value_groups = 2
    q = torch.randn(2, 4, 9, 8, generator=seed) * 3
    k, v = torch.randn(2, 2, 2, 9, 8, generator=seed)
    mask = torch.full((9, 9), float("-inf")).triu(1)[None, None]
    theirs, _ = gemma2.eager_attention_forward(module, q, k, v, mask, softcap=softcap)
    found = attention(*(x.transpose(1, 2) for x in (q, k, v)), causal=True, softcap=softcap)
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)
