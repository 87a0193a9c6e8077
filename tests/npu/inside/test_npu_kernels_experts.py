"""The NPU backends of experts and sparse attention, as test_npu_kernels.py does the others."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from fake_npu.device import active
from fake_npu.operators_experts import CALLED as EXPERTS
from fake_npu.operators_sparse import CALLED as SPARSE
from llm_kernels_npu import kernels
from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.parity import arguments, as_tuple, make
from llm_kernels_npu.registry import OPERATORS
from llm_kernels_npu.select import load

pytestmark = pytest.mark.npu

CALLED = {**EXPERTS, **SPARSE}
TAKEN = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in CALLED
    for case in check_cases(name)
    if not OPERATORS[name].backend("npu").lacks & case.features
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "case"), TAKEN)
def test_call_fits_the_real_schema_and_meta_kernel(name, case, dtype):
    if str(dtype)[6:] in OPERATORS[name].backend("npu").lacks_dtypes:
        pytest.skip(f"no {dtype} by its declaration")
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
    lacks_dtypes = OPERATORS[name].backend("npu").lacks_dtypes
    dtype = torch.bfloat16 if "float32" in lacks_dtypes else torch.float32
    tensors = make(case, device="npu", dtype=dtype)
    args, options = arguments(case, tensors)
    active().calls.clear()
    out = as_tuple(getattr(kernels(device="npu"), name)(*args, **options))[0]
    if out.requires_grad:
        out.sum().backward()
    called = [call.removeprefix("npu::") for call in active().calls if call.startswith("npu::")]
    expected = CALLED[name] if out.requires_grad else CALLED[name][:1]
    assert called == list(expected if tensors[0].numel() else ())
