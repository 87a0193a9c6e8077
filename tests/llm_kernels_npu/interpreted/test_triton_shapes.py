"""Triton kernels at shapes that hypothesis draws, and at sizes of several tiles."""

import importlib

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_kernels_npu.parity import Result, compare
from llm_kernels_npu.select import load
from steep_decays import STEEP, steep

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NORMS = ("rms_norm", "add_rms_norm", "layer_norm")
GATED = ("swiglu", "geglu")
ROWS = st.integers(0, 5)
# A norm of few features has a gradient of nothing but rounding.
SIZES = st.integers(16, 300)
dtypes = st.sampled_from(DTYPES)
few = settings(max_examples=8, deadline=None, derandomize=True)


def equals_reference(name, *shape, dtype, **options):
    case = importlib.import_module(f"llm_kernels_npu.ops.{name}.cases").case(*shape, **options)
    result = compare(name, "triton", case, device="cpu", dtype=dtype)
    assert isinstance(result, Result), result
    assert result.passed, (case.name, dtype, result.worst)


@few
@given(rows=ROWS, size=SIZES, dtype=dtypes, name=st.sampled_from(NORMS))
def test_norms_of_any_shape(rows, size, dtype, name):
    equals_reference(name, rows, size, offset=1.0, dtype=dtype)


@few
@given(rows=ROWS, size=SIZES, dtype=dtypes, name=st.sampled_from(GATED))
def test_gated_units_of_any_shape(rows, size, dtype, name):
    equals_reference(name, rows, 2 * size, dtype=dtype)


@few
@given(rows=ROWS, vocab=SIZES, scale=st.sampled_from((0.1, 30.0)), dtype=dtypes)
def test_cross_entropy_of_any_shape(rows, vocab, scale, dtype):
    equals_reference("cross_entropy", rows, vocab, scale=scale, dtype=dtype)


@few
@given(size=st.integers(1, 5000), step=st.integers(1, 10_000), dtype=dtypes)
def test_adamw_of_any_size(size, step, dtype):
    equals_reference("adamw", size, step=step, dtype=dtype)


@few
@given(
    length=st.integers(1, 9),
    heads=st.integers(1, 5),
    pairs=st.integers(1, 20),
    rest=st.integers(0, 9),
    interleaved=st.booleans(),
    dtype=dtypes,
)
def test_rope_of_any_shape(length, heads, pairs, rest, interleaved, dtype):
    rotary = 2 * pairs
    shape = (2, length, heads, rotary + rest)
    equals_reference("rope", *shape, rotary=rotary, interleaved=interleaved, dtype=dtype)


@few
@given(
    queries=st.integers(1, 40),
    more_keys=st.integers(0, 40),
    groups=st.integers(1, 2),
    dim=st.integers(4, 40),
    window=st.none() | st.integers(1, 50),
    softcap=st.none() | st.just(5.0),
    dtype=dtypes,
)
def test_attention_of_any_shape(queries, more_keys, groups, dim, window, softcap, dtype):
    # Of a query's only key the weight is 1 and its gradient 0, which rounding alone differs from.
    assume(queries + more_keys > 1 and window != 1)
    shape = (1, queries, queries + more_keys, 2 * groups, groups, dim)
    equals_reference("attention", *shape, window=window, softcap=softcap, dtype=dtype)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 40),
    channels=st.integers(1, 150),
    width=st.integers(1, 5),
    extra=st.sampled_from(((), ("bias",), ("initial_state",))),
    activation=st.sampled_from((None, "silu")),
    dtype=dtypes,
)
def test_convolution_of_any_shape(tokens, channels, width, extra, activation, dtype):
    shape = (1, tokens, channels, width)
    equals_reference("causal_conv1d", *shape, extra=extra, activation=activation, dtype=dtype)


def test_delta_rule_of_several_chunks():
    equals_reference("gated_delta_rule", 1, 70, 1, 1, 6, 5, has_state=True, dtype=torch.float32)


# One token without a state gives the rates a gradient of nothing but rounding.
@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    tokens=st.integers(2, 40),
    groups=st.integers(1, 2),
    features=st.integers(1, 40),
    states=st.integers(1, 16),
    extra=st.sampled_from(((), ("d_H",), ("initial_state",))),
    dtype=dtypes,
)
def test_scan_of_any_shape(tokens, groups, features, states, extra, dtype):
    shape = (1, tokens, 2, features, groups, states)
    equals_reference("mamba2_scan", *shape, extra=extra, dtype=dtype)


def test_delta_rule_of_one_key_over_and_over_equals_the_reference():
    """Powers of its matrix reach 1e10: the inverse must not be made of them."""
    key = torch.nn.functional.normalize(torch.ones(1, 40, 1, 8), dim=-1)
    value = torch.randn(1, 40, 1, 4, generator=torch.Generator().manual_seed(0))
    inputs = (key, key, value, torch.zeros(1, 40, 1), torch.ones(1, 40, 1))
    found = load("gated_delta_rule", "triton")[0](*inputs)
    wanted = load("gated_delta_rule", "reference")[0](*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, STEEP[-1]) for name in ("gated_delta_rule", "mamba2_scan")]
    + [("gated_delta_rule", -1e4)],
)
def test_steep_decays_give_the_references_outputs_and_gradients(name, value):
    result = compare(name, "triton", steep(name, value), device="cpu", dtype=torch.float32)
    assert isinstance(result, Result), result
    assert result.passed, result.worst


# Rows wider than the widest tile: loops over tiles, and the weight's gradient by its own kernel.
@pytest.mark.parametrize("name", NORMS)
def test_norms_of_rows_of_several_tiles(name):
    equals_reference(name, 3, 16_384 + 77, dtype=torch.bfloat16)


def test_gated_unit_of_rows_of_several_tiles():
    equals_reference("swiglu", 3, 2 * (4096 + 77), dtype=torch.float32)


def test_cross_entropy_of_several_tiles():
    equals_reference("cross_entropy", 3, 2 * 8192 + 5, scale=10.0, dtype=torch.float32)


@pytest.mark.parametrize(
    "options", [{"window": 100}, {"causal": False}, {"extra": "sinks"}], ids=str
)
def test_attention_of_several_tiles(options):
    equals_reference("attention", 1, 150, 210, 2, 1, 16, dtype=torch.float32, **options)


def test_attention_reads_strided_tensors():
    """Query, key and value as they lie side by side in one product's output."""
    packed = torch.randn(2, 9, 4, 3 * 16, generator=torch.Generator().manual_seed(0))
    q, k, v = packed.split(16, dim=-1)
    found = load("attention", "triton")[0](q, k, v, causal=True)
    wanted = load("attention", "reference")[0](q, k, v, causal=True)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_convolution_reads_channels_of_a_wider_tensor():
    wide = torch.randn(2, 9, 20, generator=torch.Generator().manual_seed(0))
    x, weight = wide[..., 4:10], torch.randn(6, 4)
    found = load("causal_conv1d", "triton")[0](x, weight)
    wanted = load("causal_conv1d", "reference")[0](x, weight)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_state_of_a_convolution_keeps_no_sequence_alive():
    x = torch.randn(1, 9, 6)
    state = load("causal_conv1d", "triton")[0](x, torch.ones(6, 4))[1]
    assert state.untyped_storage().nbytes() == state.numel() * 4


def test_infinite_logits_give_the_references_losses():
    inf = float("inf")
    logits = torch.tensor(
        [[-inf, -inf, 1.0, 2.0], [-inf] * 4, [inf, 1.0, 2.0, 3.0], [-inf, 70.0, -70.0, 0.0]]
    )
    targets = torch.tensor([2, 1, 1, 1])
    found = load("cross_entropy", "triton")[0](logits, targets)
    wanted = load("cross_entropy", "reference")[0](logits, targets)
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_target_outside_the_vocabulary_gives_nan():
    losses = load("cross_entropy", "triton")[0](torch.zeros(2, 3), torch.tensor([3, 0]))
    assert losses.isnan().tolist() == [True, False]
