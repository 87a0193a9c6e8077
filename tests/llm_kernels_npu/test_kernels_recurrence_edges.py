"""The convolution and the recurrences at the ends of what numbers and arguments can be."""

import importlib

import pytest
import torch

from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.errors import CallRefusedError
from llm_kernels_npu.parity import Result, arguments, compare, make
from llm_kernels_npu.select import Choice, bind, load
from steep_decays import STEEP, steep

INF = float("inf")
NAMES = ("causal_conv1d", "gated_delta_rule", "mamba2_scan")


@pytest.mark.parametrize("value", STEEP)
@pytest.mark.parametrize("name", NAMES[1:])
def test_steep_decays_give_the_references_outputs_and_gradients(name, value):
    result = compare(name, "torch", steep(name, value), device="cpu", dtype=torch.float32)
    assert isinstance(result, Result), result
    assert result.passed, result.worst


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_tokens_behind_one_that_forgets_all_are_a_sequence_of_their_own(backend):
    q, k, v, log_decay, beta = check_cases("gated_delta_rule")[1].build(torch.Generator())
    log_decay[:, 9] = -INF
    rule = bind(Choice(operator="gated_delta_rule", backend=backend))
    whole, last = rule(q, k, v, log_decay, beta)
    alone, alone_last = rule(*(one[:, 9:] for one in (q, k, v, log_decay, beta)))
    torch.testing.assert_close(whole[:, 9:], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, alone_last, rtol=1e-5, atol=1e-6)


def test_nan_is_not_taken_for_a_decay():
    inputs = list(check_cases("gated_delta_rule")[0].build(torch.Generator()))
    inputs[3][:, 2] = float("nan")
    out, last = load("gated_delta_rule", "torch")[0](*inputs)
    assert out[:, 2:].isnan().all()
    assert last.isnan().all()


def half_convolution(x, weight):
    """Output and gradients in float16, each backend's, of silu behind the convolution."""
    found = []
    for backend, dtype in (("torch", torch.float16), ("reference", torch.float32)):
        leaves = [one.half().to(dtype).requires_grad_() for one in (x, weight)]
        out = load("causal_conv1d", backend)[0](*leaves, activation="silu")[0]
        out.backward(torch.ones_like(out))
        found.append([out.half(), *(leaf.grad.half() for leaf in leaves)])
    return found


def test_float16_sums_over_its_largest_give_the_references_result():
    x = 2e4 * torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    ours, theirs = half_convolution(x, torch.full((3, 4), 4.0))
    assert theirs[0].isinf().any()
    torch.testing.assert_close(ours, theirs)


def test_float16_sums_that_come_back_from_over_its_largest_give_the_references_result():
    ours, theirs = half_convolution(torch.full((1, 9, 1), 4e4), torch.tensor([[2.0, -2.0, 1, 1]]))
    assert theirs[0][0, 0].item() == 4e4
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_convolution_of_no_token_gives_none_and_the_state_it_was_given(backend):
    state = torch.randn(2, 3, 5, requires_grad=True)
    convolve = bind(Choice(operator="causal_conv1d", backend=backend))
    out, last = convolve(torch.ones(2, 0, 5), torch.ones(5, 4), initial_state=state)
    assert out.shape == (2, 0, 5)
    assert last.equal(state)


def with_other(name, change):
    """Calls of an operator in which one tensor after another is changed."""
    case = max(check_cases(name), key=lambda one: len(one.keywords))
    args, options = arguments(case, make(case, device="cpu", dtype=torch.float32))
    for number, tensor in enumerate(args):
        yield number, [*args[:number], change(tensor), *args[number + 1 :]], options
    for key in case.keywords:
        yield key, args, {**options, key: change(options[key])}


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.int(), "int32"),
        (lambda x: x.to(torch.complex64), "complex64"),
        (lambda x: x.to("meta"), "meta"),
        (lambda x: x.double(), "float64"),
    ],
    ids=["integers", "complex", "device", "float64"],
)
@pytest.mark.parametrize("name", [*NAMES, "dsa_indexer"])
def test_any_tensor_of_another_kind_is_refused_by_name(name, change, reason, backend):
    operator = bind(Choice(operator=name, backend=backend))
    for _, args, options in with_other(name, change):
        with pytest.raises(CallRefusedError, match=reason):
            operator(*args, **options)


@pytest.mark.parametrize("name", NAMES)
def test_any_tensor_may_be_of_fewer_bits(name):
    operator = bind(Choice(operator=name, backend="torch"))
    exact = load(name, "reference")[0]
    for _, args, options in with_other(name, lambda x: x.detach().bfloat16()):
        found = operator(*args, **options)
        wanted = exact(*args, **options)
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


def test_keys_without_features_are_refused():
    limits = importlib.import_module("llm_kernels_npu.ops.gated_delta_rule.limits").LIMITS
    nothing, value = torch.ones(1, 3, 1, 0), torch.ones(1, 3, 1, 2)
    gates = torch.ones(1, 3, 1)
    reason = limits["torch"](nothing, nothing, value, gates, gates)
    assert reason == "q of shape (1, 3, 1, 0) has no features"
