"""Tokens alone in their texts, many in one step; expected values are those of torch in float64."""

import pytest
import torch
from torch.nn import functional as F

from llm_infer.model import fused
from llm_infer.model.attend import Attend, Scores
from llm_infer.model.cache import Pool, Step, segments

GROUPS, QUERIES, DIM, SIZE = 2, 3, 32, 64
# Texts by their blocks: three at even distances, one that is scattered, one of another length, and
# three of which the last two do not lie in order.
BLOCKS = ([1, 2], [4, 5], [7, 8], [12, 3], [10], [14, 15, 16], [20, 21, 22], [17, 18, 19])
LENGTHS = (65, 100, 128, 70, 9, 129, 150, 192)


@pytest.fixture
def pool():
    torch.manual_seed(0)
    slots = 24 * SIZE
    return Pool(torch.randn(GROUPS, slots, DIM), torch.randn(GROUPS, slots, DIM), DIM)


def step_of(texts):
    cut = []
    for blocks, length, count in texts:
        row = cut[-1].stop if cut else 0
        cut += segments(row, length - count, length, blocks, SIZE)
    nothing = torch.empty(0)
    return Step(
        tokens=nothing,
        positions=nothing,
        slots=nothing,
        variants=None,
        segments=tuple(cut),
        last_rows=nothing,
        block_tokens=SIZE,
    )


def expected(q_GRD, pool, blocks, length, window):
    """Mixed values of a text's last token."""
    slots = [block * SIZE + offset for block in blocks for offset in range(SIZE)][:length]
    seen = slots[max(0, length - (window or length)) :]
    k, v = pool.keys[:, seen].double(), pool.values[:, seen].double()
    return F.scaled_dot_product_attention(q_GRD.double(), k, v, scale=0.2)


@pytest.mark.parametrize("window", [None, 70])
def test_a_lone_token_comes_out_as_torch_says_and_the_same_beside_others(pool, window, kernels):
    attend = Attend(Scores(scale=0.2, window=window), kernels, queries=QUERIES, block_tokens=SIZE)
    q = torch.randn(len(BLOCKS) + 5, GROUPS, QUERIES, DIM)
    texts = [(blocks, length, 1) for blocks, length in zip(BLOCKS, LENGTHS, strict=True)]
    # A prompt of which five tokens are computed joins the step.
    together = attend(q, pool, step_of([*texts, ([0, 23], 90, 5)]))
    for row, (blocks, length, count) in enumerate(texts):
        wanted = expected(q[row], pool, blocks, length, window)
        assert torch.allclose(together[row].double(), wanted, atol=1e-5)
        alone = attend(q[row : row + 1], pool, step_of([(blocks, length, count)]))
        assert torch.equal(alone[0], together[row]), row
    wanted = expected(q[-1], pool, [0, 23], 90, window)
    assert torch.allclose(together[-1].double(), wanted, atol=1e-5)


def test_texts_with_as_many_keys_at_even_distances_go_in_one_call(pool):
    texts = [(blocks, length, 1) for blocks, length in zip(BLOCKS, LENGTHS, strict=True)]
    found = fused.singles(step_of(texts), pool, window=None, queries=QUERIES, tile=8)
    # The last two go backwards, which no stride does.
    assert found.sizes == [3, 1, 1, 2, 1]


@pytest.mark.parametrize("channels", [16, 64, 80, 128])
def test_rows_come_out_the_same_in_tiles_of_any_number(channels):
    tile = fused.tile_rows(channels)
    q, k, v = (torch.randn(1, 2, rows, channels) for rows in (192, 384, 384))
    mask = torch.zeros(192, 384).masked_fill(torch.rand(192, 384) < 0.1, -torch.inf)

    def mixed(first, stop):
        return fused.attended(q[:, :, first:stop], k, v, mask=mask[first:stop], scale=0.1)

    whole = mixed(0, 192)
    wide = [x.double() for x in (q, k, v, mask)]
    wanted = F.scaled_dot_product_attention(*wide, scale=0.1)
    assert torch.allclose(whole.double(), wanted, atol=1e-5)
    for first in range(0, 192, tile):
        for rows in (tile, 3 * tile, 192 - first):
            stop = min(192, first + rows)
            assert torch.equal(mixed(first, stop), whole[:, :, first:stop]), (first, stop)


def test_a_kernel_whose_small_tiles_round_otherwise_gets_large_ones():
    def exact(q, k, v, *, mask, scale):
        return torch.zeros_like(q)

    def rounding_otherwise(q, k, v, *, mask, scale):
        return torch.full_like(q, 1e-7 if q.shape[2] == 4 else 0.0)

    assert fused.smallest_tile(exact, 64) == 4
    assert fused.smallest_tile(rounding_otherwise, 64) == 8
