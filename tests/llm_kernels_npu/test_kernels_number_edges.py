"""Backends of PyTorch where its operators overflow, give NaN or stop and the reference does not."""

import pytest
import torch

from llm_kernels_npu.errors import CallRefusedError
from llm_kernels_npu.select import Choice, bind, load

INF = float("inf")


@pytest.fixture
def qkv(seed):
    return [torch.randn(2, 5, heads, 8, generator=seed) for heads in (4, 2, 2)]


def both(name, inputs, **options):
    """Outputs and gradients of the torch backend, and of the reference in float32."""
    found = []
    for backend in ("torch", "reference"):
        dtypes = [x.dtype if backend == "torch" else torch.float32 for x in inputs]
        leaves = [
            x.detach().to(dtype).requires_grad_() for x, dtype in zip(inputs, dtypes, strict=True)
        ]
        out = bind(Choice(operator=name, backend=backend))(*leaves, **options)
        out.backward(torch.ones_like(out))
        found.append([x.to(inputs[0].dtype) for x in (out.detach(), *(y.grad for y in leaves))])
    return found


@pytest.mark.parametrize("name", ["cross_entropy", "vocab_parallel_cross_entropy"])
def test_losses_of_infinite_logits_are_pytorchs(name):
    """After an overflow NaN; of a target that cannot come inf; others are what they were."""
    logits = torch.tensor([[INF, 1.0, 2.0], [INF, INF, 0.0], [0.0, -INF, 1.0], [-INF, 0.5, -INF]])
    targets = torch.tensor([1, 1, 1, 1])
    wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert wanted.isnan().tolist() == [True, True, False, False]
    alone = {"vocab_start": 0, "all_reduce_max": lambda x: x, "all_reduce_sum": lambda x: x}
    options = alone if name.startswith("vocab") else {}
    for backend in ("torch", "reference"):
        found = bind(Choice(operator=name, backend=backend))(logits, targets, **options)
        torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("scale", [0.0, -0.5])
@pytest.mark.parametrize("has_sinks", [False, True], ids=["plain", "sinks"])
def test_causal_attention_of_a_scale_that_is_not_positive_equals_the_reference(
    qkv, scale, has_sinks
):
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0]) if has_sinks else None
    ours, theirs = both("attention", qkv, causal=True, scale=scale, sinks=sinks)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_with_sinks_of_minus_infinity_has_none(qkv, dtype):
    sinks = torch.full((4,), -INF, dtype=dtype)
    attention = bind(Choice(operator="attention", backend="torch"))
    inputs = [x.to(dtype) for x in qkv]
    found = attention(*inputs, causal=True, sinks=sinks)
    torch.testing.assert_close(found, attention(*inputs, causal=True), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_gated_unit_of_float16_has_no_nan_in_its_gradient(name):
    gate_up = torch.tensor([[-6e4, -6e4, 6e4, 1.0, 2.0, 3e4, 1.0, 3.0]])
    found = []
    for backend in ("torch", "reference"):
        dtype = torch.float16 if backend == "torch" else torch.float32
        leaf = gate_up.detach().to(dtype).requires_grad_()
        out = load(name, backend)[0](leaf)
        out.backward(torch.full_like(out, 4.0))
        found.append((out.half(), leaf.grad.half()))
    assert not found[1][1].isnan().any()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("where", ["turned", "columns", "every other"])
def test_grouped_product_of_bfloat16_reads_rows_that_lie_anyhow(seed, where):
    wide = torch.randn(7, 24, generator=seed).bfloat16()
    weight = torch.randn(3, 8, 16, generator=seed).bfloat16()
    if where == "turned":
        x, weight = wide[:, :8].mT.contiguous().mT, weight.mT.contiguous().mT
    else:
        x = wide[:, 1:9] if where == "columns" else wide[:, ::3]
    ours, theirs = both("grouped_matmul", [x, weight], group_sizes=[3, 0, 4])
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


one = torch.ones
NOTHING = {
    "attention-features": ("attention", (one(1, 2, 1, 0),) * 3, {"causal": True}, "no features"),
    "attention-key-heads": (
        "attention",
        (one(1, 2, 2, 4), one(1, 2, 0, 4), one(1, 2, 0, 4)),
        {"causal": True},
        "not a multiple of 0 key heads",
    ),
    "grouped_matmul-groups": (
        "grouped_matmul",
        (one(0, 4), one(0, 4, 2), ()),
        {},
        r"weight of shape \(0, 4, 2\) has no groups",
    ),
}


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(("name", "args", "options", "match"), NOTHING.values(), ids=NOTHING)
def test_call_with_nothing_to_compute_with_is_refused(name, args, options, match, backend):
    with pytest.raises(CallRefusedError, match=match):
        bind(Choice(operator=name, backend=backend))(*args, **options)


@pytest.mark.parametrize(
    "options", [{"sinks": one(4).double()}, {"mask": one(5, 5).double()}], ids=["sinks", "mask"]
)
def test_attention_refuses_float64_beside_float32(qkv, options):
    with pytest.raises(CallRefusedError, match=r"q is float32 but .* float64"):
        bind(Choice(operator="attention", backend="reference"))(*qkv, causal=True, **options)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float64])
def test_router_refuses_a_bias_of_another_kind(dtype):
    route = bind(Choice(operator="router_topk", backend="reference"))
    with pytest.raises(CallRefusedError, match="bias"):
        route(one(3, 4), top_k=2, bias=one(4, dtype=dtype))
