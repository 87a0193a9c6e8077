"""Every backend that this machine can run, against its reference; and the comparison itself."""

import pytest
import torch

from llm_kernels_npu.cases import bench_cases, check_cases
from llm_kernels_npu.edge.device import present
from llm_kernels_npu.ops.linear_cross_entropy import chunks
from llm_kernels_npu.ops.linear_cross_entropy.cases import case as linear_case
from llm_kernels_npu.parity import Result, arguments, as_tuple, compare, make, poisoned
from llm_kernels_npu.registry import OPERATORS
from llm_kernels_npu.select import availability, load

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HERE = [
    pytest.param(name, backend.name, case, device, id=f"{device}-{name}-{backend.name}-{case.name}")
    for device in ("cpu", "cuda", "npu")
    for name in OPERATORS
    for backend, reason in availability(name, device=device)
    if reason is None
    for case in check_cases(name)
]


MARKS = {"cpu": (), "cuda": pytest.mark.gpu, "npu": pytest.mark.npu}


@pytest.mark.parametrize(
    ("name", "backend", "case", "device"),
    [pytest.param(*p.values, id=p.id, marks=MARKS[p.values[3]]) for p in HERE],
)
def test_backend_equals_reference(name, backend, case, device):
    if device not in present():
        pytest.skip(f"no {device} device here")
    for dtype in DTYPES:
        result = compare(name, backend, case, device=device, dtype=dtype)
        if isinstance(result, str):
            entry = OPERATORS[name].backend(backend)
            is_declared = entry.lacks & case.features or str(dtype)[6:] in entry.lacks_dtypes
            assert is_declared, f"refused without a declared lack: {result}"
            continue
        assert result.passed, result.worst


ANYWHERE = [
    (name, backend.name)
    for name, entry in OPERATORS.items()
    for backend in entry.backends
    if backend.name in ("reference", "torch")
]


@pytest.mark.parametrize(("name", "backend"), ANYWHERE)
def test_gradients_equal_finite_differences(name, backend):
    run, limit = load(name, backend)
    for case in check_cases(name):
        tensors = make(case, device="cpu", dtype=torch.float64)
        args, options = arguments(case, tensors)
        if limit(*args, **options) is not None or tensors[0].numel() > 4000:
            continue
        if not case.differentiable or case.stay_float32:
            continue  # no gradients, or none that float64 would show
        if "scale" in case.name.split(" ", 1)[-1] and name != "attention":
            continue  # finite differences of values near 1e-4 or 300 are too coarse

        def call(*tensors, case=case):
            args, options = arguments(case, tensors)
            outputs = as_tuple(run(*args, **options))
            return tuple(out for out in outputs if out.is_floating_point())

        assert torch.autograd.gradcheck(call, tensors, fast_mode=True, atol=1e-6)


def test_at_least_one_case_a_feature():
    for name, entry in OPERATORS.items():
        covered = frozenset().union(*(case.features for case in check_cases(name)))
        assert covered == entry.features


def kernel_off_by(relative):
    run = load("swiglu", "torch")[0]
    return lambda x: run(x) * (1 + relative)


@pytest.mark.parametrize(
    ("dtype", "wrong"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 0.02)]
)
def test_comparison_fails_for_a_kernel_slightly_off(dtype, wrong):
    case = check_cases("swiglu")[0]
    result = compare("swiglu", "torch", case, device="cpu", dtype=dtype, run=kernel_off_by(wrong))
    assert isinstance(result, Result)
    assert not result.passed


def test_comparison_fails_for_a_wrong_gradient_alone():
    run = load("swiglu", "torch")[0]

    def wrong(x):
        out = run(x)
        return out.detach() + 0.999 * (out - out.detach())

    case = check_cases("swiglu")[0]
    result = compare("swiglu", "torch", case, device="cpu", dtype=torch.float32, run=wrong)
    assert isinstance(result, Result)
    assert result.worst.tensor == "gradient 0"
    assert not result.passed


def test_comparison_fails_for_a_kernel_that_leaves_memory_unwritten():
    def forgetful(x):
        out = torch.empty((*x.shape[:-1], x.shape[-1] // 2))
        out[..., 1:] = load("swiglu", "torch")[0](x)[..., 1:]
        return out

    case = check_cases("swiglu")[0]
    result = compare("swiglu", "torch", case, device="cpu", dtype=torch.float32, run=forgetful)
    assert isinstance(result, Result)
    assert result.worst.relative == float("inf")


def test_poison_is_undone():
    with poisoned():
        assert torch.empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_linear_cross_entropy_in_several_chunks_equals_reference(reduction, dtype, monkeypatch):
    monkeypatch.setattr(chunks, "_MIN_CHUNK_ROWS", 4)
    assert chunks.best_rows(130, hidden_size=24, vocab_size=211) * 3 < 130
    case = linear_case(130, 24, 211, reduction=reduction)
    result = compare("linear_cross_entropy", "torch", case, device="cpu", dtype=dtype)
    assert isinstance(result, Result)
    assert result.passed, result.worst


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_linear_cross_entropy_never_holds_all_logits(reduction):
    """1024 rows x 32768 words in float32 are 128 MiB; no tensor near that is made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numel = max(self.numel, out.numel())
            return out

    hidden = torch.randn(1024, 8, requires_grad=True)
    weight = torch.randn(32768, 8, requires_grad=True)
    with Largest() as largest:
        losses = load("linear_cross_entropy", "torch")[0](
            hidden, weight, torch.zeros(1024, dtype=torch.int64), reduction=reduction
        )
        losses.sum().backward()
    assert largest.numel <= 1024 * 32768 // 4


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_operator_has_bench_cases_its_backends_take(name, device):
    for case in bench_cases(name, device=device):
        if device == "cuda":
            continue
        args, options = arguments(case, make(case, device="cpu", dtype=torch.float32))
        for backend in OPERATORS[name].backends:
            if backend.name in ("reference", "torch"):
                assert load(name, backend.name)[1](*args, **options) is None
