"""The NPU backends of a mixture of experts' operators, as test_npu_kernels.py does the others."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from fake_npu.device import active
from fake_npu.operators_experts import CALLED
from llm_kernels_npu import kernels
from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.parity import arguments, as_tuple, make
from llm_kernels_npu.registry import OPERATORS
from llm_kernels_npu.select import load

pytestmark = pytest.mark.npu

TAKEN = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in CALLED
    for case in check_cases(name)
    if not OPERATORS[name].backend("npu").lacks & case.features
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "case"), TAKEN)
def test_call_fits_the_real_schema_and_meta_kernel(name, case, dtype):
    run, limit = load(name, "npu")
    tensors = [x.detach() for x in make(case, device="cpu", dtype=dtype)]
    args, options = arguments(case, tensors)
    expected = as_tuple(load(name, "reference")[0](*args, **options))
    with _disable_current_modes(), FakeTensorMode():
        args, options = arguments(
            case, [torch.empty(x.shape, dtype=x.dtype, device="npu") for x in tensors]
        )
        assert limit(*args, **options) is None
        found = as_tuple(run(*args, **options))
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.device.type == "npu"


@pytest.mark.parametrize(("name", "case"), TAKEN)
def test_fused_operators_are_what_runs_forward_and_backward(name, case):
    tensors = make(case, device="npu", dtype=torch.float32)
    args, options = arguments(case, tensors)
    active().calls.clear()
    out = as_tuple(getattr(kernels(device="npu"), name)(*args, **options))[0]
    if out.requires_grad:
        out.sum().backward()
    called = [call.removeprefix("npu::") for call in active().calls if call.startswith("npu::")]
    expected = CALLED[name] if out.requires_grad else CALLED[name][:1]
    assert called == list(expected if tensors[0].numel() else ())
