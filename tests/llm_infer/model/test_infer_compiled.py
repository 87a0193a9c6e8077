"""Operators in C for each width of vectors this CPU has, against torch in float64."""

import math
import platform
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from llm_infer.compiled import build
from llm_infer.compiled.build import CannotCompileError
from llm_infer.compiled.kernels import CompiledKernels
from llm_infer.compiled.library import Library
from llm_infer.kernels import TorchKernels
from llm_infer.model.attend import Attend, Scores
from llm_infer.model.cache import Pool, Step, segments
from llm_infer.model.int8 import quantized

GROUPS, QUERIES, SIZE = 2, 3, 16
# Lanes of a vector, the compiler's flag, and what /proc/cpuinfo calls it.
WIDTHS = {4: ("x86-64", "sse2"), 8: ("haswell", "avx2"), 16: ("x86-64-v4", "avx512vl")}


@pytest.fixture(scope="module", params=["native", *WIDTHS])
def compiled(request, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        if request.param != "native":
            if platform.machine() != "x86_64":
                pytest.skip("not an x86-64 CPU")
            flag, needs = WIDTHS[request.param]
            if needs not in Path("/proc/cpuinfo").read_text():
                pytest.skip(f"a CPU without {needs}")
            patch.setattr(build, "_own_cpu", lambda: (f"-march={flag}",))
        try:
            functions = Library(build.load())
        except CannotCompileError as error:
            pytest.skip(str(error))
    assert request.param in ("native", functions.lanes)
    return CompiledKernels(functions)


def step_of(first, stop, blocks):
    nothing = torch.empty(0)
    return Step(
        tokens=nothing,
        positions=nothing,
        slots=nothing,
        variants=None,
        segments=tuple(segments(0, first, stop, blocks, SIZE)),
        last_rows=nothing,
        block_tokens=SIZE,
    )


SCORES = {
    "plain": Scores(scale=0.3),
    "window": Scores(scale=0.3, window=21),
    "softcap": Scores(scale=3.0, softcap=5.0),
    "sinks": Scores(scale=0.3, sinks=torch.tensor([[[0.5, -math.inf, 9.0]], [[-2.0, 0.0, 3.0]]])),
    "slopes": Scores(scale=0.3, slopes=torch.rand(GROUPS, QUERIES, 1) / 4),
    "large": Scores(scale=300.0),
}


def mixed(q_TGRD, k_GSD, v_GSD, facts):
    """By the definitions, in float64."""
    length = len(q_TGRD)
    scores = torch.einsum("tgrd,gsd->tgrs", q_TGRD.double(), k_GSD.double()) * facts.scale
    if facts.softcap is not None:
        scores = facts.softcap * torch.tanh(scores / facts.softcap)
    if facts.slopes is not None:
        scores = scores + facts.slopes.double() * torch.arange(length)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (distance < 0) | (distance >= (facts.window or length))
    scores = scores.masked_fill(hidden[:, None, None], -math.inf)
    if facts.sinks is not None:
        sinks = facts.sinks.double().transpose(1, 2).expand(length, -1, -1, -1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., :length]
    return torch.einsum("tgrs,gsd->tgrd", weights, v_GSD.double())


@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 16), (64, 64), (80, 80), (144, 128)])
@pytest.mark.parametrize("name", SCORES)
def test_attention_is_the_formula_and_a_token_does_not_depend_on_the_others(
    compiled, name, key_dim, value_dim
):
    torch.manual_seed(0)
    facts, length, blocks = SCORES[name], 75, [7, 2, 3, 9, 0]
    # What was never written may be anything.
    pool = Pool(*(torch.full((GROUPS, 10 * SIZE, d), math.nan) for d in (key_dim, value_dim)), 0)
    slots = torch.tensor([blocks[i // SIZE] * SIZE + i % SIZE for i in range(length)])
    k, v = torch.randn(length, GROUPS, key_dim), torch.randn(length, GROUPS, value_dim)
    pool.write(slots, k, v)
    # Queries as they lie between keys and values of a projection.
    q = torch.randn(length, GROUPS, QUERIES + 2, key_dim)[:, :, :QUERIES]
    attend = Attend(facts, compiled, queries=QUERIES, block_tokens=SIZE)
    whole = attend(q, pool, step_of(0, length, blocks))
    wanted = mixed(q, k.transpose(0, 1), v.transpose(0, 1), facts)
    # float32 has scores of 3000 to 2e-4.
    atol = 2e-3 if name == "large" else 2e-5
    assert torch.allclose(whole.double(), wanted, atol=atol, rtol=1e-5)
    for first, stop in ((74, 75), (64, 75), (10, 37), (15, 16), (0, 1)):
        part = attend(q[first:stop], pool, step_of(first, stop, blocks))
        assert torch.equal(part, whole[first:stop]), (first, stop)


def test_a_token_that_is_nan_is_nan_and_those_before_it_are_not(compiled):
    pool = Pool(*(torch.randn(GROUPS, 2 * SIZE, 16) for _ in range(2)), 0)
    pool.keys[:, 20] = math.nan
    q = torch.randn(25, GROUPS, QUERIES, 16)
    found = Attend(SCORES["plain"], compiled, queries=QUERIES, block_tokens=SIZE)(
        q, pool, step_of(0, 25, [0, 1])
    )
    assert found[:20].isfinite().all()
    assert found[20:].isnan().all()


@pytest.mark.parametrize(("inner", "outer"), [(7, 3), (64, 96), (1500, 70)])
def test_products_and_gates_are_those_of_torch(compiled, inner, outer):
    torch.manual_seed(0)
    weight, bias = torch.randn(2 * outer, inner), torch.randn(2 * outer)
    # Rows may lie apart, as parts of others do.
    x = (torch.randn(110, inner + 5) / inner**0.5)[:, :inner]
    wide = F.linear(x.double(), weight.double(), bias.double())
    assert torch.allclose(compiled.linear(weight, bias)(x).double(), wide, atol=2e-5, rtol=1e-5)
    gate, up = wide.chunk(2, dim=1)
    found = compiled.swiglu_linear(weight, bias)(x)
    assert torch.allclose(found.double(), F.silu(gate) * up, atol=5e-5, rtol=1e-5)
    codes, scales = quantized(weight)
    rounded = F.linear(x.double(), codes.double() * scales.double()[:, None], bias.double())
    for layer, wanted in (
        (compiled.int8_linear(weight, bias), rounded),
        (
            compiled.int8_swiglu_linear(weight, bias),
            F.silu(rounded[:, :outer]) * rounded[:, outer:],
        ),
    ):
        whole = layer(x)
        assert torch.allclose(whole.double(), wanted, atol=5e-5, rtol=1e-5)
        assert torch.equal(layer(x[31:32]), whole[31:32])
        assert torch.equal(layer(x[31:50]), whole[31:50])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_two_bytes_are_the_numbers_they_say(compiled, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    found = compiled.linear(every[:, None], None)(torch.ones(1, 1))[0]
    assert torch.equal(found.nan_to_num(nan=7.0), every.float().nan_to_num(nan=7.0))
    weight, x = torch.randn(70, 600).to(dtype), torch.randn(20, 600)
    wanted = x.double() @ weight.double().T
    assert torch.allclose(compiled.linear(weight, None)(x).double(), wanted, atol=1e-4)


def test_a_gate_far_from_zero_is_silus(compiled):
    gates = torch.tensor([-200.0, -88.5, -87.0, -20.0, -1e-4, 0.0, 1e-4, 20.0, 89.0, 1e15])
    x = torch.cat([gates, torch.tensor([math.nan])])[:, None]
    found = compiled.swiglu_linear(torch.ones(2, 1), None)(x)
    wanted = F.silu(x.double()) * x.double()
    assert torch.allclose(found.double(), wanted, atol=1e-30, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("size", [5, 64, 1030])
def test_rms_norm_is_torchs(compiled, size):
    x, weight = torch.randn(3, 40, 2, size + 3)[..., :size] * 7, torch.randn(2, size)
    found = compiled.rms_norm(x, weight, eps=1e-5, offset=1.0)
    wide = x.double()
    wanted = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (weight.double() + 1)
    assert torch.allclose(found.double(), wanted, rtol=2e-6, atol=1e-6)
    assert torch.equal(compiled.rms_norm(x[1:2], weight, eps=1e-5, offset=1.0), found[1:2])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("norm_is_last", [False, True])
@pytest.mark.parametrize(("dim", "width"), [(16, 16), (20, 12), (64, 0)])
def test_heads_are_normed_rotated_and_put_away(compiled, dim, width, norm_is_last, interleaved):
    torch.manual_seed(0)
    tokens, gates = 9, 2
    rows = torch.randn(tokens, GROUPS, QUERIES + gates + 2, dim)
    gain, slots = torch.randn(QUERIES + 1, dim), torch.randperm(40)[:tokens]
    angles = torch.randn(tokens, 1, width // 2)
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles, angles], -1)
    tables = (angles.cos(), angles.sin()) if width else None
    before, torchs = rows.clone(), TorchKernels()
    heads = [0, 1, 2, QUERIES + gates]
    wanted = before[:, :, heads]
    for is_norm in (norm_is_last, not norm_is_last):
        if not is_norm:
            wanted = torchs.rms_norm(wanted, gain, eps=1e-5)
        elif tables is not None:
            cos, sin = (table[:, None] for table in tables)
            wanted = torchs.rope(wanted, cos, sin, interleaved=interleaved)
    pool = Pool(torch.zeros(GROUPS, 40, dim), torch.zeros(GROUPS, 40, dim), dim)
    compiled.functions.place_heads(
        rows,
        tables,
        slots,
        pool.keys,
        pool.values,
        queries=QUERIES,
        gain=gain,
        eps=1e-5,
        norm_is_last=norm_is_last,
        interleaved=interleaved,
    )
    assert torch.allclose(rows[:, :, :QUERIES], wanted[:, :, :QUERIES], atol=1e-5)
    assert torch.equal(
        rows[:, :, QUERIES : QUERIES + gates], before[:, :, QUERIES : QUERIES + gates]
    )
    kept = Pool(torch.zeros(GROUPS, 40, dim), torch.zeros(GROUPS, 40, dim), dim)
    kept.write(slots, wanted[:, :, -1], before[:, :, -1])
    assert torch.allclose(pool.keys, kept.keys, atol=1e-5)
    assert torch.equal(pool.values, kept.values)
