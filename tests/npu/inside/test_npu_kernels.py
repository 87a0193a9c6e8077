"""The NPU backends of llm-kernels-npu against torch_npu's real schemas and Meta kernels.

Their numbers are checked by tests/llm_kernels_npu/test_kernels_parity.py, on this device too.
"""

import importlib

import pytest
import torch
from click.testing import CliRunner
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from fake_npu.device import active
from llm_kernels_npu import kernels
from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.cli import main
from llm_kernels_npu.errors import CallRefusedError
from llm_kernels_npu.parity import make
from llm_kernels_npu.registry import OPERATORS
from llm_kernels_npu.select import load

pytestmark = pytest.mark.npu

FUSED = {
    "rms_norm": "npu_rms_norm",
    "swiglu": "npu_swiglu",
    "rope": "npu_rotary_mul",
    "cross_entropy": "npu_cross_entropy_loss",
    "attention": "npu_fusion_attention",
}
GRADIENT = {**FUSED, "attention": "npu_fusion_attention_grad"} | {
    name: f"{fused}_backward" for name, fused in FUSED.items() if name != "attention"
}
TAKEN = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in FUSED
    for case in check_cases(name)
    if "softcap" not in case.features
]


def test_every_npu_backend_is_in_these_tests():
    with_npu = {n for n, entry in OPERATORS.items() if any(b.name == "npu" for b in entry.backends)}
    assert set(FUSED) == with_npu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "case"), TAKEN)
def test_call_fits_the_real_schema_and_meta_kernel(name, case, dtype):
    """Shapes and dtypes as torch_npu infers them are those of the reference."""
    run, limit = load(name, "npu")
    expected = load(name, "reference")[0](
        *(x.detach() for x in make(case, device="cpu", dtype=dtype)), **case.options
    )
    mask = importlib.import_module("llm_kernels_npu.ops.attention.npu")._compressed_mask
    mask.cache_clear()
    with _disable_current_modes(), FakeTensorMode():
        tensors = [
            torch.empty(x.shape, dtype=x.dtype, device="npu")
            for x in make(case, device="cpu", dtype=dtype)
        ]
        assert limit(*tensors, **case.options) is None
        found = run(*tensors, **case.options)
    mask.cache_clear()
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.device.type == "npu"


@pytest.mark.parametrize(("name", "case"), TAKEN)
def test_fused_operator_is_what_runs_forward_and_backward(name, case):
    tensors = make(case, device="npu", dtype=torch.float32)
    active().calls.clear()
    getattr(kernels(device="npu"), name)(*tensors, **case.options).sum().backward()
    called = [call.removeprefix("npu::") for call in active().calls if call.startswith("npu::")]
    assert called == [FUSED[name], GRADIENT[name]]


def test_auto_prints_what_serves_the_npu():
    line = str(kernels(device="npu", features={"attention": {"softcap"}}))
    assert "rms_norm npu, swiglu npu, rope npu, cross_entropy npu" in line
    assert "linear_cross_entropy torch" in line
    assert "attention reference (npu has no softcap; torch has no softcap)" in line


def test_refusal_names_the_backends_that_take_the_call():
    q = torch.ones(1, 4, 2, 8, device="npu")
    with pytest.raises(CallRefusedError, match=r"npu refuses .*that take it: reference\)"):
        kernels(device="npu").attention(q, q, q, causal=True, softcap=30.0)


def test_npu_backend_refuses_a_cpu_tensor_and_names_who_takes_it():
    with pytest.raises(CallRefusedError, match=r"x is on cpu.*take it: reference, torch"):
        kernels(device="npu").swiglu(torch.ones(2, 8))


def test_check_command_covers_the_npu_backends():
    result = CliRunner().invoke(main, ["check", "--device", "npu", "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if " npu " in line]
    assert len(lines) == len(FUSED)
    assert all(" ok " in line for line in lines)
