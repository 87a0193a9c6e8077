"""References of convolution, gated delta rule and Mamba-2 against transformers' torch functions."""

import pytest
import torch
from torch.nn import functional

from llm_kernels_npu import kernels
from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.errors import CallRefusedError
from llm_kernels_npu.ops.causal_conv1d.reference import causal_conv1d
from llm_kernels_npu.ops.gated_delta_rule.reference import gated_delta_rule
from llm_kernels_npu.ops.mamba2_scan.reference import mamba2_scan
from llm_kernels_npu.select import load

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
BOTH = pytest.mark.parametrize("backend", ["reference", "torch"])


def delta_inputs(seed, tokens):
    q, k = torch.randn(2, 2, tokens, 2, 8, generator=seed)
    v = torch.randn(2, tokens, 4, 6, generator=seed)
    log_decay = -torch.rand(2, tokens, 4, generator=seed)
    beta = torch.rand(2, tokens, 4, generator=seed)
    return q, functional.normalize(k, dim=-1), v, log_decay, beta


@BOTH
@pytest.mark.parametrize("form", ["chunk", "recurrent"])
def test_gated_delta_rule_equals_transformers_qwen3_next(seed, form, backend):
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    theirs = getattr(qwen, f"torch_{form}_gated_delta_rule")
    inputs = delta_inputs(seed, 70)
    state = torch.randn(2, 4, 8, 6, generator=seed)
    q, k, v, g, beta = inputs
    expected = theirs(q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True)
    found = load("gated_delta_rule", backend)[0](*inputs, state)
    torch.testing.assert_close(found[0], expected[0], **CLOSE)
    torch.testing.assert_close(found[1], expected[1], **CLOSE)


@BOTH
def test_gated_delta_rule_goes_on_from_its_state(seed, backend):
    run = load("gated_delta_rule", backend)[0]
    inputs = delta_inputs(seed, 77)
    whole, end = run(*inputs)
    first, state = run(*(x[:, :65] for x in inputs))
    second, last = run(*(x[:, 65:] for x in inputs), state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, **CLOSE)
    torch.testing.assert_close(last, end, **CLOSE)


def scan_inputs(seed, tokens):
    x = torch.randn(2, tokens, 4, 6, generator=seed)
    dt = functional.softplus(torch.randn(2, tokens, 4, generator=seed))
    a = -torch.rand(4, generator=seed) - 0.1
    b, c = torch.randn(2, 2, tokens, 2, 5, generator=seed)
    return x, dt, a, b, c


@BOTH
@pytest.mark.parametrize("model", ["mamba2", "bamba"])
def test_mamba2_scan_equals_transformers(seed, model, backend):
    import importlib

    theirs = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    inputs = scan_inputs(seed, 70)
    skip, state = torch.randn(4, generator=seed), torch.randn(2, 4, 6, 5, generator=seed)
    expected = theirs.mamba2_chunk_scan(
        *inputs, chunk_size=16, D=skip, initial_states=state, return_final_states=True
    )
    found = load("mamba2_scan", backend)[0](*inputs, skip, state)
    torch.testing.assert_close(found[0], expected[0], **CLOSE)
    torch.testing.assert_close(found[1], expected[1], **CLOSE)


def test_one_token_of_mamba2_equals_transformers_state_update(seed):
    from transformers.models.mamba2.modeling_mamba2 import mamba2_selective_state_update

    x, dt, a, b, c = scan_inputs(seed, 1)
    skip, state = torch.randn(4, generator=seed), torch.randn(2, 4, 6, 5, generator=seed)
    written = state.clone()
    expected = mamba2_selective_state_update(
        written, x[:, 0], dt[:, 0, :, None].expand(-1, -1, 6), a[:, None, None].expand(-1, 6, 5),
        b[:, 0], c[:, 0], D=skip[:, None].expand(-1, 6),
    )  # fmt: skip
    found = mamba2_scan(x, dt, a, b, c, skip, state)
    torch.testing.assert_close(found[0][:, 0], expected, **CLOSE)
    torch.testing.assert_close(found[1], written, **CLOSE)


@BOTH
def test_causal_conv1d_equals_transformers_mamba2(seed, backend):
    from transformers.models.mamba2 import modeling_mamba2 as mamba

    x, weight = torch.randn(2, 9, 6, generator=seed), torch.randn(6, 4, generator=seed)
    bias = torch.randn(6, generator=seed)
    run = load("causal_conv1d", backend)[0]
    expected = mamba.causal_conv1d_fn(x.mT, weight, bias, activation="silu").mT
    whole, end = run(x, weight, bias, activation="silu")
    torch.testing.assert_close(whole, expected, **CLOSE)
    assert torch.equal(end, x[:, -3:])
    state = x[:, 4:7].mT.clone()
    step = mamba.causal_conv1d_update(x[:, 7:8].mT, state, weight, bias, activation="silu")
    found, after = run(x[:, 7:8], weight, bias, x[:, 4:7], activation="silu")
    torch.testing.assert_close(found.mT, step, **CLOSE)
    assert torch.equal(after.mT, state)


@pytest.mark.parametrize("name", ["gated_delta_rule", "mamba2_scan", "causal_conv1d"])
def test_a_state_of_zeros_is_no_state(name):
    case = next(case for case in check_cases(name) if "state" in case.name)
    *inputs, state = case.build(torch.Generator().manual_seed(0))
    run, positional = load(name, "torch")[0], len(inputs) + 1 - len(case.keywords)
    named = dict(zip(case.keywords, inputs[positional:], strict=False))
    inputs = inputs[:positional]
    found = run(*inputs, **named, initial_state=torch.zeros_like(state))
    for one, other in zip(found, run(*inputs, **named), strict=True):
        assert torch.equal(one, other)


ones = torch.ones
WRONG = {
    "conv-width": (causal_conv1d, (ones(1, 4, 3), ones(2, 4)), r"want \[B, T, C\] and \[C, W\]"),
    "conv-state": (
        causal_conv1d,
        (ones(1, 4, 3), ones(3, 4), None, ones(1, 4, 3)),
        r"initial_state of shape \(1, 4, 3\), want \(1, 3, 3\)",
    ),
    "delta-heads": (
        gated_delta_rule,
        (ones(1, 4, 2, 3), ones(1, 4, 2, 3), ones(1, 4, 3, 5), ones(1, 4, 3), ones(1, 4, 3)),
        "3 value heads are not a multiple of 2 key heads",
    ),
    "delta-beta": (
        gated_delta_rule,
        (ones(1, 4, 2, 3), ones(1, 4, 2, 3), ones(1, 4, 2, 5), ones(1, 4, 2), ones(1, 4)),
        r"beta of shape \(1, 4\), want \(1, 4, 2\)",
    ),
    "scan-rates": (
        mamba2_scan,
        (ones(1, 4, 2, 3), ones(1, 4, 2), ones(3), ones(1, 4, 1, 5), ones(1, 4, 1, 5)),
        r"a of shape \(3,\), want \(2,\)",
    ),
    "scan-no-tokens": (
        mamba2_scan,
        (ones(1, 0, 2, 3), ones(1, 0, 2), ones(2), ones(1, 0, 1, 5), ones(1, 0, 1, 5)),
        "T > 0",
    ),
}


@pytest.mark.parametrize(("operator", "args", "match"), WRONG.values(), ids=WRONG)
def test_wrong_call_is_refused(operator, args, match):
    with pytest.raises(CallRefusedError, match=match):
        getattr(kernels(device="cpu"), operator.__name__)(*args)
