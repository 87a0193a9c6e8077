"""Attention by pairs of spans, forward and backward, against torch's own attention and autograd."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from llm_train.model.context_parallel.blocks import Scoring
from llm_train.model.context_parallel.flash import KERNELS
from llm_train.model.context_parallel.ring import ring_attention
from llm_train.model.context_parallel.spans import Sight, Span, held, plan, ring_plans
from llm_train.model.context_parallel.zigzag import ContextRank, join, part, take

TOKENS, HEADS, GROUPS = 24, 4, 2


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def heads(dtype, *, q_dim=16, v_dim=16, batch=2):
    def make(count, dim):
        return torch.randn(batch, count, TOKENS, dim, dtype=dtype, requires_grad=True)

    return make(HEADS, q_dim), make(GROUPS, q_dim), make(GROUPS, v_dim)


def by_autograd(q, k, v, *, scale, allowed, softcap=None, slopes=None, sinks=None):
    """Scores, mask and softmax written out, for [B, H, T, D]; gradients are torch's."""
    k, v = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if slopes is not None:
        places = torch.arange(TOKENS)
        scores = scores - slopes[:, None, None] * (places[:, None] - places)
    scores = scores.masked_fill(~allowed, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)], dim=-1)
    return scores.softmax(-1)[..., :TOKENS] @ v


def causal(window=None):
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    return (distance >= 0) & (distance < (window or TOKENS))


def gradients(out, inputs):
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return torch.autograd.grad((out * weights).sum(), inputs)


def assert_close(found, wanted, atol):
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=atol, rtol=1e-5)


def over_shares(q, k, v, size, *, scoring, sinks=None, starts=None, tile=None):
    """The work of all ranks of a ring, one rank after the other in this process."""
    options = {"window": scoring.window, "tile": tile, "starts": starts}
    whole = held(TOKENS, ring_rank=0, ring_size=1)
    outs = []
    for rank in range(size):
        pairs = plan(held(TOKENS, ring_rank=rank, ring_size=size), whole, **options)
        mine = take(q, rank=rank, size=size, dim=2)
        outs.append(
            ring_attention(mine, k, v, sinks=sinks, scoring=scoring, steps=[pairs], ring=None)
        )
    return join(torch.stack([out.permute(2, 0, 1, 3) for out in outs])).permute(1, 2, 0, 3)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_fused_pairs_are_torchs_attention(size):
    q, k, v = heads(torch.float32)
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    found = over_shares(q, k, v, size, scoring=Scoring(scale=0.3))
    assert_close(
        [found, *gradients(found, (q, k, v))], [wanted, *gradients(wanted, (q, k, v))], 2e-6
    )


FEATURES = {
    "plain": {},
    "window": {"window": 5},
    "softcap": {"softcap": 0.7},
    "alibi": {"slopes": torch.tensor([0.5, 0.25, 0.1, 0.01], dtype=torch.float64)},
    "sinks": {"sinks": True},
    "everything": {
        "window": 7,
        "softcap": 0.7,
        "slopes": torch.tensor([0.5, 0.25, 0.1, 0.01], dtype=torch.float64),
        "sinks": True,
    },
}


@pytest.mark.parametrize(("name", "size", "tile"), itertools.product(FEATURES, (1, 2), (None, 4)))
def test_every_feature_has_torchs_output_and_gradients(name, size, tile):
    features = dict(FEATURES[name])
    # Of two sizes, as latent attention has them: the explicit scores and the padded kernel.
    q, k, v = heads(torch.float64, q_dim=12, v_dim=6)
    is_sunk = features.pop("sinks", False)
    sinks = torch.randn(HEADS, dtype=torch.float64, requires_grad=True) if is_sunk else None
    inputs = (q, k, v) if sinks is None else (q, k, v, sinks)
    window = features.pop("window", None)
    wanted = by_autograd(q, k, v, scale=0.8, allowed=causal(window), sinks=sinks, **features)
    scoring = Scoring(scale=0.8, window=window, **features)
    found = over_shares(q, k, v, size, scoring=scoring, sinks=sinks, tile=tile)
    tolerance = 1e-12
    assert_close(
        [found, *gradients(found, inputs)], [wanted, *gradients(wanted, inputs)], tolerance
    )


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("features", [{}, {"window": 4}, {"softcap": 0.7}])
def test_a_document_sees_itself_alone(features, size):
    q, k, v = heads(torch.float64)
    starts = ((0, 7, 8, 19), (0, 12))
    documents = torch.stack(
        [torch.bucketize(torch.arange(TOKENS), torch.tensor(row), right=True) for row in starts]
    )
    window = features.get("window")
    allowed = causal(window) & (documents[:, :, None] == documents[:, None, :])
    softcap = features.get("softcap")
    wanted = by_autograd(q, k, v, scale=0.3, allowed=allowed[:, None], softcap=softcap)
    found = over_shares(q, k, v, size, scoring=Scoring(scale=0.3, **features), starts=starts)
    assert_close(
        [found, *gradients(found, (q, k, v))], [wanted, *gradients(wanted, (q, k, v))], 1e-6
    )


def test_a_kernel_takes_half_precision():
    q, k, v = heads(torch.bfloat16)
    wanted = F.scaled_dot_product_attention(
        *(x.float() for x in (q, k, v)), is_causal=True, scale=0.3, enable_gqa=True
    )
    found = over_shares(q, k, v, 2, scoring=Scoring(scale=0.3))
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=2e-2, rtol=2e-2)


def test_cpu_has_a_fused_kernel_and_unknown_devices_have_none():
    assert "cpu" in KERNELS
    assert "meta" not in KERNELS


def test_ranks_of_a_ring_have_equal_work():
    """Of T·(T + 1) / 2 pairs of tokens, each of four ranks computes as many (zigzag's purpose)."""
    work = []
    for rank in range(4):
        steps = ring_plans(64, ContextRank(rank=rank, size=4), window=None, tile=None, starts=None)
        seen = 0
        for pair in itertools.chain(*steps):
            rows, columns = pair.queries.length, pair.keys.length
            seen += rows * (rows + 1) // 2 if pair.sight is Sight.DIAGONAL else rows * columns
        work.append(seen)
    assert work == [64 * 65 // 2 // 4] * 4


def test_hidden_pairs_are_left_out():
    options = {"tile": None, "starts": None}
    early, late = (Span(0, 0, 8),), (Span(0, 24, 8),)
    assert plan(early, late, window=None, **options) == ()
    assert plan(late, early, window=17, **options) == ()
    assert [pair.sight for pair in plan(late, early, window=18, **options)] == [Sight.PART]
    assert [pair.sight for pair in plan(late, early, window=32, **options)] == [Sight.WHOLE]
    assert plan(late, early, window=None, tile=None, starts=((0, 20),)) == ()


def test_neighbours_grow_together():
    """A later rank's keys are seen by the late queries alone, in one product."""
    steps = ring_plans(32, ContextRank(rank=0, size=2), window=None, tile=None, starts=None)
    (pair,) = steps[1]
    assert (pair.queries.rows, pair.keys.rows) == (slice(8, 16), slice(0, 16))


def test_join_and_part_are_inverses_and_take_is_a_share():
    x = torch.arange(24).view(24, 1)
    shares = torch.stack([take(x, rank=rank, size=3) for rank in range(3)])
    assert shares[1].flatten().tolist() == [4, 5, 6, 7, 16, 17, 18, 19]
    assert torch.equal(join(shares), x)
    assert torch.equal(part(x, 3), shares)


def test_a_ulysses_group_holds_a_share_of_the_ring():
    """Ranks 2 and 3 of 4, joined, hold what rank 1 of 2 would."""
    x = torch.arange(32)
    pair = torch.stack([take(x, rank=rank, size=4) for rank in (2, 3)])
    assert torch.equal(join(pair), take(x, rank=1, size=2))
