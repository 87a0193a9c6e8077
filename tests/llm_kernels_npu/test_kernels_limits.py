"""Calls outside a backend's limits: the error names operator, backend, reason and who takes it."""

import importlib
import re

import pytest
import torch

from llm_kernels_npu import kernels
from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.errors import CallRefusedError
from llm_kernels_npu.parity import arguments, make
from llm_kernels_npu.registry import OPERATORS
from llm_kernels_npu.select import Choice, bind, load

ones = torch.ones


def refusal(operator, backend, *args, **kwargs) -> str:
    """The reason alone, straight from the limits."""
    limits = importlib.import_module(f"llm_kernels_npu.ops.{operator}.limits").LIMITS
    reason = limits[backend](*args, **kwargs)
    assert reason is not None
    return reason


def test_every_backend_has_a_function_and_limits():
    for name, entry in OPERATORS.items():
        limits = importlib.import_module(f"llm_kernels_npu.ops.{name}.limits").LIMITS
        assert set(limits) == {backend.name for backend in entry.backends}
        for backend in entry.backends:
            if backend.package is None:
                assert callable(load(name, backend.name)[0])


def test_refusal_names_operator_backend_reason_and_takers():
    q = ones(1, 4, 2, 8)
    attention = bind(Choice(operator="attention", backend="torch"))
    with pytest.raises(CallRefusedError) as caught:
        attention(q, q, q, causal=True, softcap=30.0)
    assert str(caught.value) == (
        "attention: backend torch refuses this call: softcap=30.0: scaled_dot_product_attention "
        "has no softcap (backends here that take it: reference)"
    )


def test_call_that_nobody_takes_says_none():
    norm = kernels(device="cpu").rms_norm
    with pytest.raises(CallRefusedError, match=r"weight of shape \(7,\), want \(8,\).*it: none"):
        norm(ones(2, 8), ones(7), eps=1e-6)


WRONG = {
    "rms_norm-integers": ("rms_norm", (ones(2, 8).long(), ones(8)), {"eps": 1e-6}, "x is int64"),
    "rms_norm-device": (
        "rms_norm",
        (ones(2, 8), ones(8, device="meta")),
        {"eps": 1e-6},
        "x is on cpu but weight on meta",
    ),
    "swiglu-odd": ("swiglu", (ones(2, 7),), {}, "even last dimension"),
    "add_rms_norm-residual": (
        "add_rms_norm",
        (ones(2, 8), ones(1, 8), ones(8)),
        {"eps": 1e-6},
        r"residual of shape \(1, 8\), want \(2, 8\)",
    ),
    "add_rms_norm-dtype": (
        "add_rms_norm",
        (ones(2, 8), ones(2, 8).bfloat16(), ones(8)),
        {"eps": 1e-6},
        "x is float32 but residual bfloat16",
    ),
    "layer_norm-bias": (
        "layer_norm",
        (ones(2, 8), ones(8), ones(7)),
        {"eps": 1e-6},
        r"bias of shape \(7,\), want \(8,\)",
    ),
    "geglu-odd": ("geglu", (ones(2, 7),), {}, "even last dimension"),
    "geglu-formula": (
        "geglu",
        (ones(2, 8),),
        {"approximate": "erf"},
        "approximate is 'erf', want one of none, tanh",
    ),
    "matmul_add-rows": (
        "matmul_add",
        (ones(3, 2), ones(5, 3), ones(4, 2)),
        {},
        r"x of shape \(5, 3\) and y \(4, 2\), want \[K, M\] and \[K, N\]",
    ),
    "matmul_add-half": (
        "matmul_add",
        (ones(3, 2).bfloat16(), ones(5, 3).bfloat16(), ones(5, 2).bfloat16()),
        {},
        "out is bfloat16, want float32",
    ),
    "matmul_add-leaf": (
        "matmul_add",
        (ones(3, 2).requires_grad_(), ones(5, 3), ones(5, 2)),
        {},
        "out takes a gradient",
    ),
    "vocab_parallel-start": (
        "vocab_parallel_cross_entropy",
        (ones(4, 9), torch.zeros(4, dtype=torch.int64)),
        {"vocab_start": -1, "all_reduce_max": torch.abs, "all_reduce_sum": torch.abs},
        "vocab_start is -1",
    ),
    "rope-odd": ("rope", (ones(1, 2, 1, 8), ones(5), ones(5)), {}, "cos has 5 features"),
    "rope-too-wide": ("rope", (ones(1, 2, 1, 8), ones(10), ones(10)), {}, "up to x's 8"),
    "rope-sin": ("rope", (ones(1, 2, 1, 8), ones(8), ones(6)), {}, r"sin \(6,\)"),
    "rope-length": (
        "rope",
        (ones(1, 2, 1, 8), ones(1, 3, 1, 8), ones(1, 3, 1, 8)),
        {},
        "does not broadcast",
    ),
    "cross_entropy-shape": (
        "cross_entropy",
        (ones(4, 9), torch.zeros(5, dtype=torch.int64)),
        {},
        r"want \[N, V\] and \[N\]",
    ),
    "cross_entropy-dtype": (
        "cross_entropy",
        (ones(4, 9), torch.zeros(4, dtype=torch.int32)),
        {},
        "targets are int32, want int64",
    ),
    "linear-dtype": (
        "linear_cross_entropy",
        (ones(4, 3), ones(9, 3).bfloat16(), torch.zeros(4, dtype=torch.int64)),
        {},
        "hidden is float32 but weight bfloat16",
    ),
    "linear-reduction": (
        "linear_cross_entropy",
        (ones(4, 3), ones(9, 3), torch.zeros(4, dtype=torch.int64)),
        {"reduction": "mean"},
        "reduction is 'mean', want one of none, sum",
    ),
    "linear-chunk": (
        "linear_cross_entropy",
        (ones(4, 3), ones(9, 3), torch.zeros(4, dtype=torch.int64)),
        {"chunk_rows": 0},
        "chunk_rows is 0, want at least 1",
    ),
    "linear-shape": (
        "linear_cross_entropy",
        (ones(4, 3), ones(9, 5), torch.zeros(4, dtype=torch.int64)),
        {},
        r"\[V, H\]",
    ),
    "attention-groups": (
        "attention",
        (ones(1, 4, 3, 8), ones(1, 4, 2, 8), ones(1, 4, 2, 8)),
        {"causal": True},
        "3 query heads are not a multiple of 2 key heads",
    ),
    "attention-shape": (
        "attention",
        (ones(1, 4, 2, 8), ones(1, 4, 2, 6), ones(1, 4, 2, 6)),
        {"causal": True},
        r"\[B, S, G, D\]",
    ),
    "attention-few-keys": (
        "attention",
        (ones(1, 4, 2, 8), ones(1, 3, 2, 8), ones(1, 3, 2, 8)),
        {"causal": True},
        "4 queries and only 3 keys",
    ),
    "attention-window-0": (
        "attention",
        (ones(1, 4, 2, 8),) * 3,
        {"causal": True, "window": 0},
        "window is 0",
    ),
    "attention-no-keys": (
        "attention",
        (ones(1, 4, 2, 8), ones(1, 0, 2, 8), ones(1, 0, 2, 8)),
        {"causal": False},
        "has no keys",
    ),
    "attention-sinks": (
        "attention",
        (ones(1, 4, 2, 8),) * 3,
        {"causal": True, "sinks": ones(3)},
        r"sinks of shape \(3,\), want \(2,\)",
    ),
    "attention-mask": (
        "attention",
        (ones(3, 4, 2, 8),) * 3,
        {"causal": True, "mask": ones(2, 1, 4, 4).bool()},
        r"want \(4, 4\) or \(3, 2, 4, 4\) or 1 for B and H",
    ),
    "attention-mask-integers": (
        "attention",
        (ones(1, 4, 2, 8),) * 3,
        {"causal": True, "mask": ones(4, 4).long()},
        "mask is int64, want",
    ),
    "attention-mask-and-documents": (
        "attention",
        (ones(1, 4, 2, 8),) * 3,
        {"causal": True, "mask": ones(4, 4).bool(), "cu_seqlens": (0, 4)},
        "a mask and cu_seqlens",
    ),
    "attention-documents-end": (
        "attention",
        (ones(2, 4, 2, 8),) * 3,
        {"causal": True, "cu_seqlens": (0, 3, 7)},
        r"cu_seqlens is \(0, 3, 7\), want 0 to 8",
    ),
    "attention-documents-fall": (
        "attention",
        (ones(2, 4, 2, 8),) * 3,
        {"causal": True, "cu_seqlens": (0, 5, 3, 8)},
        "without falling",
    ),
    "attention-documents-on-a-device": (
        "attention",
        (ones(2, 4, 2, 8),) * 3,
        {"causal": True, "cu_seqlens": torch.tensor([0, 8])},
        "is a tensor, want integers of the host",
    ),
    "attention-documents-few-keys": (
        "attention",
        (ones(1, 4, 2, 8),) * 3,
        {"causal": True, "cu_seqlens": (0, 3, 4), "cu_seqlens_k": (0, 2, 4)},
        "document 0: causal with 3 queries and only 2 keys",
    ),
    "attention-documents-unpaired": (
        "attention",
        (ones(1, 4, 2, 8),) * 3,
        {"causal": False, "cu_seqlens": (0, 3, 4), "cu_seqlens_k": (0, 4)},
        "has 3 numbers but cu_seqlens_k 2",
    ),
    "attention-key-documents-alone": (
        "attention",
        (ones(1, 4, 2, 8),) * 3,
        {"causal": False, "cu_seqlens_k": (0, 4)},
        "cu_seqlens_k without cu_seqlens",
    ),
    "attention-window-not-causal": (
        "attention",
        (ones(1, 4, 2, 8),) * 3,
        {"causal": False, "window": 2},
        "needs causal=True",
    ),
}


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(("operator", "args", "options", "match"), WRONG.values(), ids=WRONG)
def test_wrong_call_is_refused(operator, args, options, match, backend):
    with pytest.raises(CallRefusedError, match=match):
        bind(Choice(operator=operator, backend=backend))(*args, **options)


# By operator the sizes that no other argument repeats, as (tensor, axis).
FREE = {
    "causal_conv1d": {(0, 0), (0, 1), (1, 1)},  # B, T, W
    "gated_delta_rule": {(2, 3)},  # V
    "mamba2_scan": {(0, 3)},  # P
    "dsa_indexer": {(1, 1)},  # S
    "sparse_attention": {(0, 2), (1, 1), (2, 2)},  # H, S, K
}


@pytest.mark.parametrize("name", FREE)
def test_size_that_two_arguments_share_is_refused_when_one_differs(name):
    case = check_cases(name)[0]
    args, options = arguments(case, make(case, device="cpu", dtype=torch.float32))
    operator = bind(Choice(operator=name, backend="torch"))
    operator(*args, **options)
    for number, tensor in enumerate(args):
        for axis in range(tensor.dim()):
            grown = torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)
            changed = [*args[:number], grown, *args[number + 1 :]]
            if (number, axis) in FREE[name]:
                operator(*changed, **options)
            else:
                with pytest.raises(CallRefusedError):
                    operator(*changed, **options)


@pytest.mark.parametrize("axis", [0, 1], ids=["B", "T"])
@pytest.mark.parametrize(("name", "twins"), [("gated_delta_rule", (0, 1)), ("mamba2_scan", (3, 4))])
def test_pair_of_one_shape_is_refused_when_the_others_do_not_follow(name, twins, axis):
    case = check_cases(name)[0]
    args, options = arguments(case, make(case, device="cpu", dtype=torch.float32))
    changed = list(args)
    for number in twins:
        changed[number] = torch.cat([args[number], args[number].narrow(axis, 0, 1)], axis)
    with pytest.raises(CallRefusedError, match="the same B and T > 0"):
        bind(Choice(operator=name, backend="torch"))(*changed, **options)


@pytest.mark.parametrize("name", FREE)
def test_first_tensor_of_another_dtype_or_device_is_refused(name):
    case = check_cases(name)[0]
    (first, *rest), options = arguments(case, make(case, device="cpu", dtype=torch.float32))
    operator = bind(Choice(operator=name, backend="torch"))
    for changed in (first.int(), first.to("meta")):
        with pytest.raises(CallRefusedError):
            operator(changed, *rest, **options)


@pytest.mark.parametrize(
    ("name", "number", "match"),
    [
        ("causal_conv1d", 2, r"initial_state of shape \(3, 3, 5\), want \(2, 3, 5\)"),
        ("gated_delta_rule", 2, r"initial_state of shape \(2, 3, 5, 7\), want \(1, 3, 5, 7\)"),
        ("mamba2_scan", 2, r"initial_state of shape \(2, 3, 4, 5\), want \(1, 3, 4, 5\)"),
    ],
)
def test_state_of_another_batch_is_refused(name, number, match):
    case = check_cases(name)[number]
    args, options = arguments(case, make(case, device="cpu", dtype=torch.float32))
    state = options["initial_state"]
    operator = bind(Choice(operator=name, backend="torch"))
    with pytest.raises(CallRefusedError, match=match):
        operator(*args, **{**options, "initial_state": torch.cat([state, state[:1]])})


def test_npu_refuses_a_tensor_elsewhere():
    assert refusal("swiglu", "npu", ones(2, 8)) == "x is on cpu, want an npu device"


class Device:
    type = "npu"


class OnNpu:
    """Stands for an NPU tensor in limits, which read shape, dtype and device alone."""

    device = Device()

    def __init__(self, *shape, dtype=torch.bfloat16):
        self.shape, self.dtype = torch.Size(shape), dtype

    def dim(self):
        return len(self.shape)

    def numel(self):
        return self.shape.numel()


@pytest.mark.parametrize(
    ("operator", "shapes", "options", "match"),
    [
        ("rms_norm", [(8,), (8,)], {"eps": 1e-6}, "x has 1 dimensions, want 2 to 8"),
        ("rms_norm", [(0, 8), (8,)], {"eps": 1e-6}, r"x of shape \(0, 8\) is empty"),
        ("swiglu", [(0, 8)], {}, "is empty"),
        ("rope", [(2, 3, 8), (3, 8), (3, 8)], {}, "x has 3 dimensions and cos 2, want 4 and 4"),
        ("rope", [(1, 3, 1, 1024), (1, 3, 1, 896), (1, 3, 1, 896)], {}, "fewer than 896"),
        (
            "rope",
            [(50, 3, 20, 8), (1, 3, 1, 8), (1, 3, 1, 8)],
            {"interleaved": True},
            r"batch \* heads of x is 1000",
        ),
        (
            "rope",
            [(2, 3, 4, 8), (2, 3, 1, 8), (2, 3, 1, 8)],
            {"interleaved": True},
            "want 1 on the batch and head axes",
        ),
        ("rope", [(1000, 3, 4, 8), (1, 3, 1, 8), (1, 3, 1, 8)], {}, "must each be < 1000"),
        ("attention", [(1, 4, 2, 8)] * 3, {"causal": True, "softcap": 5.0}, "no softcap"),
        ("attention", [(1, 4, 2, 513)] * 3, {"causal": True}, "at most 512"),
        ("attention", [(1, 4, 257, 8)] * 3, {"causal": True}, "257 heads, want at most 256"),
        (
            "attention",
            [(1, 4, 2, 8), (1, 4, 2, 8), (1, 4, 2, 6)],
            {"causal": True},
            "v has 6 features a head, want q's 8",
        ),
        ("attention", [(0, 4, 2, 8)] * 3, {"causal": True}, "is empty"),
        (
            "attention",
            [(1, 4, 2, 8)] * 3,
            {"causal": True, "mask": ones(4, 4)},
            "mask is float32, want bool",
        ),
        (
            "attention",
            [(1, 4, 2, 8)] * 3,
            {"causal": True, "cu_seqlens": (0, *[4] * 1025)},
            "1025 documents, want at most 1024",
        ),
        (
            "attention",
            [(1, 4, 2, 8)] * 3,
            {"causal": False, "cu_seqlens": (0, 2, 4), "cu_seqlens_k": (0, 4, 4)},
            "document 1 has 2 queries and no keys",
        ),
    ],
)
def test_npu_limits(operator, shapes, options, match):
    reason = refusal(operator, "npu", *(OnNpu(*shape) for shape in shapes), **options)
    assert re.search(match, reason), reason


def test_npu_refuses_float64():
    reason = refusal("swiglu", "npu", OnNpu(2, 8, dtype=torch.float64))
    assert reason == "x is float64, want one of bfloat16, float16, float32"
