"""The reference of attention with sinks, masks and packed rows against transformers and torch."""

import itertools

import pytest
import torch
from torch.nn import functional

from llm_kernels_npu.ops.attention.reference import attention

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def drawn(seed, *, batch=2, queries=9, keys=9, heads=4, groups=2, dim=8):
    """q, k, v in the reference's layout."""
    q = torch.randn(batch, queries, heads, dim, generator=seed) * 2
    k, v = torch.randn(2, batch, keys, groups, dim, generator=seed)
    return q, k, v


def torch_attention(q, k, v, mask, **options):
    """PyTorch's own, with every query head's keys written out."""
    repeats = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeats, 2).transpose(1, 2) for x in (k, v))
    out = functional.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=mask, **options
    )
    return out.transpose(1, 2)


@pytest.mark.parametrize("window", [None, 4])
def test_sinks_equal_transformers_gpt_oss(seed, window):
    from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss

    q, k, v = drawn(seed)
    sinks = torch.randn(4, generator=seed).requires_grad_()
    module = torch.nn.Module().eval()
    module.num_key_value_groups, module.sinks = 2, torch.nn.Parameter(sinks.detach())
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1)
    if window is not None:
        hidden |= torch.ones(9, 9, dtype=torch.bool).tril(-window)
    mask = torch.zeros(9, 9).masked_fill(hidden, torch.finfo(torch.float32).min)[None, None]
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    theirs, _ = gpt_oss.eager_attention_forward(module, *heads_first, mask, scaling=8**-0.5)
    found = attention(q, k, v, causal=True, window=window, sinks=sinks)
    torch.testing.assert_close(found, theirs, **CLOSE)
    weights = torch.randn(theirs.shape, generator=seed)
    (theirs * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(sinks.grad, module.sinks.grad, **CLOSE)


def test_a_sink_takes_its_part_by_hand():
    # Scores 0 and 0 beside a sink of log 2: a quarter each and a half lost.
    q, k = torch.zeros(1, 1, 1, 2), torch.zeros(1, 2, 1, 2)
    v = torch.tensor([[[[4.0, 0.0]], [[0.0, 8.0]]]])
    found = attention(q, k, v, causal=True, sinks=torch.tensor([2.0]).log())
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("shape", [(9, 11), (2, 1, 9, 11), (1, 4, 9, 11)])
def test_boolean_and_floating_masks_equal_torch(seed, shape):
    q, k, v = drawn(seed, keys=11)
    seen = torch.rand(shape, generator=seed) < 0.6
    seen[..., 0] = True
    bias = torch.randn(shape, generator=seed).where(seen, -torch.inf)
    for mask in (seen, bias):
        found = attention(q, k, v, causal=False, mask=mask)
        torch.testing.assert_close(found, torch_attention(q, k, v, mask), **CLOSE)


def test_a_mask_hides_beside_causal(seed):
    q, k, v = drawn(seed)
    padding = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    padding[1, ..., :3] = False
    found = attention(q, k, v, causal=True, mask=padding)
    joint = padding & torch.ones(9, 9, dtype=torch.bool).tril()
    theirs = torch_attention(q, k, v, joint)
    torch.testing.assert_close(found[0], theirs[0], **CLOSE)
    torch.testing.assert_close(found[1, 3:], theirs[1, 3:], **CLOSE)
    assert not found[1, :3].any()


@pytest.mark.parametrize("floating", [False, True])
def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient(seed, floating):
    q, k, v = (x.requires_grad_() for x in drawn(seed))
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[4] = False
    if floating:
        mask = torch.zeros(9, 9).masked_fill(~mask, -torch.inf)
    found = attention(q, k, v, causal=False, mask=mask)
    found.sum().backward()
    assert not found[:, 4].any()
    assert not q.grad[:, 4].any()
    assert all(bool(x.grad.isfinite().all()) for x in (q, k, v))


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (None, 2.0)])
def test_packed_rows_equal_each_document_alone(seed, window, softcap):
    """Alone: transformers' eager attention of Gemma 2, which knows neither packing nor rows."""
    from transformers.models.gemma2 import modeling_gemma2 as gemma2

    module = torch.nn.Module().eval()
    module.num_key_value_groups = 2
    bounds = (0, 5, 6, 6, 18)
    q, k, v = drawn(seed)
    found = attention(
        q, k, v, causal=True, window=window, softcap=softcap, cu_seqlens=bounds
    ).flatten(0, 1)
    for start, stop in itertools.pairwise(bounds):
        length = stop - start
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        seen &= torch.ones(length, length, dtype=torch.bool).triu(1 - (window or length + 1))
        mask = torch.zeros(1, 1, length, length).masked_fill(~seen, -torch.inf)
        alone = (x.flatten(0, 1)[None, start:stop].transpose(1, 2) for x in (q, k, v))
        theirs, _ = gemma2.eager_attention_forward(
            module, *alone, mask, scaling=8**-0.5, softcap=softcap
        )
        torch.testing.assert_close(found[start:stop], theirs[0], **CLOSE)


def test_documents_of_other_lengths_than_their_keys_equal_a_block_mask(seed):
    q, k, v = drawn(seed, batch=1, queries=10, keys=14)
    owner = torch.tensor([0] * 4 + [1] * 6)
    key_owner = torch.tensor([0] * 9 + [1] * 5)
    theirs = torch_attention(q, k, v, owner[:, None] == key_owner[None, :])
    bounds = {"cu_seqlens": (0, 4, 10), "cu_seqlens_k": (0, 9, 14)}
    torch.testing.assert_close(attention(q, k, v, causal=False, **bounds), theirs, **CLOSE)


def test_a_document_without_keys_gives_zeros(seed):
    q, k, v = drawn(seed, batch=1, queries=6, keys=5)
    bounds = {"cu_seqlens": (0, 4, 6), "cu_seqlens_k": (0, 5, 5)}
    found = attention(q, k, v, causal=False, **bounds)
    assert not found[:, 4:].any()
    torch.testing.assert_close(found[:, :4], torch_attention(q[:, :4], k, v, None), **CLOSE)
