"""Operators of sparse attention in plain torch against their specification in llm-kernels-npu."""

import pytest
import torch

from llm_infer.kernels import TorchKernels
from llm_infer.model import sparse
from llm_kernels_npu.ops.dsa_indexer.reference import dsa_indexer
from llm_kernels_npu.ops.sparse_attention.reference import sparse_attention

KERNELS = TorchKernels()


@pytest.fixture
def seed():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("keys", "top_k"), [(20, 7), (64, 7), (150, 40), (150, 150), (20, 30)])
def test_the_indexer_chooses_the_best_keys(seed, keys, top_k):
    queries = 13
    q = torch.randn(2, queries, 3, 12, generator=seed)
    k = torch.randn(2, keys, 12, generator=seed)
    weights = torch.randn(2, queries, 3, generator=seed)
    # Half of the scores are equal: of keys behind one another.
    k[:, 1::2] = k[:, ::2]
    found = KERNELS.dsa_indexer(q, k, weights, top_k=top_k)
    assert found.dtype == torch.int32
    assert torch.equal(found, dsa_indexer(q, k, weights, top_k=top_k))


@pytest.mark.parametrize("keys", [5, 40])
def test_attention_over_chosen_keys(seed, keys):
    q = torch.randn(2, 6, 5, 20, generator=seed)
    kv = torch.randn(2, 50, 20, generator=seed)
    order = torch.rand(2, 6, 50, generator=seed).argsort(-1)[..., :keys]
    chosen = order.masked_fill(torch.arange(keys) >= 3 + 4 * torch.arange(6)[:, None], -1).int()
    chosen[0, 0] = -1
    found = KERNELS.sparse_attention(q, kv, chosen, value_dim=16, scale=0.3)
    expected = sparse_attention(q, kv, chosen, value_dim=16, scale=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not found[0, 0].any()


def test_numbers_that_are_none_still_leave_as_many_keys(seed):
    q, weights = torch.randn(1, 4, 3, 12, generator=seed), torch.ones(1, 4, 3)
    k = torch.randn(1, 20, 12, generator=seed)
    k[0, 5:15] = float("nan")
    found = KERNELS.dsa_indexer(q, k, weights, top_k=12)
    assert found.shape == (1, 4, 12)
    assert found.max() <= 19


@pytest.mark.parametrize("heads", [1, 3, 24])
def test_a_query_has_the_same_bits_alone_and_with_those_beside_it(seed, monkeypatch, heads):
    """Within one tile of keys, as queries of one block are; also where scores go in parts."""
    tile = sparse.KEY_TILE
    q = torch.randn(1, tile, heads, 32, generator=seed)
    k = torch.randn(1, 3 * tile, 32, generator=seed)
    weights = torch.randn(1, tile, heads, generator=seed)
    scores = sparse._scores(q[0], k[0], weights[0])
    for first, stop in ((0, 1), (5, 6), (5, 30), (63, 64)):
        part = slice(first, stop)
        seen = 2 * tile + stop
        alone = sparse._scores(q[0, part], k[0, :seen], weights[0, part])
        assert torch.equal(alone, scores[part, :seen])
    chosen = KERNELS.dsa_indexer(q, k, weights, top_k=20)
    mixed = KERNELS.sparse_attention(q, k, chosen, value_dim=32, scale=0.2)
    for token in (0, 7, 63):
        one = KERNELS.sparse_attention(
            q[:, token : token + 1], k, chosen[:, token : token + 1], value_dim=32, scale=0.2
        )
        assert torch.equal(one[0, 0], mixed[0, token])
    monkeypatch.setattr(sparse, "_AT_ONCE", 5 * heads * 3 * tile)
    assert torch.equal(KERNELS.dsa_indexer(q, k, weights, top_k=20), chosen)
