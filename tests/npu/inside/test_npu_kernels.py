"""The NPU backends of llm-kernels-npu against torch_npu's real schemas and Meta kernels.

Their numbers are checked by tests/llm_kernels_npu/test_kernels_parity.py, on this device too.
"""

import importlib
import re

import pytest
import torch
from click.testing import CliRunner
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from fake_npu.device import active
from fake_npu.operators_experts import CALLED as EXPERTS
from fake_npu.operators_sparse import CALLED as SPARSE
from fake_npu.schemas import committed
from llm_kernels_npu import kernels
from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.cli import main
from llm_kernels_npu.errors import CallRefusedError
from llm_kernels_npu.parity import arguments, as_tuple, make
from llm_kernels_npu.registry import OPERATORS
from llm_kernels_npu.select import load

pytestmark = pytest.mark.npu

FUSED = {
    "rms_norm": "npu_rms_norm",
    "swiglu": "npu_swiglu",
    "rope": "npu_rotary_mul",
    "cross_entropy": "npu_cross_entropy_loss",
    "add_rms_norm": "npu_add_rms_norm",
    "geglu": "npu_geglu",
    "matmul_add": "npu_grouped_matmul_add_",
    "adamw": "npu_apply_adam_w",
    "attention": "npu_fusion_attention",
}
"""What each operator's forward calls."""

GRADIENT = {
    "rms_norm": "npu_rms_norm_backward",
    "swiglu": "npu_swiglu_backward",
    "rope": "npu_rotary_mul_backward",
    "cross_entropy": "npu_cross_entropy_loss_backward",
    "add_rms_norm": "npu_rms_norm_backward",
    "geglu": "npu_geglu_grad",
    "attention": "npu_fusion_attention_grad",
}
"""What its backward calls, where it has one."""

HALF = frozenset({"matmul_add"})
"""Whose fused operator is for 16 bits alone."""

TAKEN = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in FUSED
    for case in check_cases(name)
    if not case.features & OPERATORS[name].backend("npu").lacks
]


def test_every_npu_backend_is_in_these_tests():
    with_npu = {n for n, entry in OPERATORS.items() if any(b.name == "npu" for b in entry.backends)}
    assert {*FUSED, *EXPERTS, *SPARSE} == with_npu


def test_committed_schemas_are_those_torch_npu_defines():
    for name, text in committed().schemas.items():
        operator, _, overload = name.partition(".")
        live = getattr(getattr(torch.ops.npu, operator), overload or "default")._schema
        assert torch._C.parse_schema(f"npu::{text}") == live


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "case"), TAKEN)
def test_call_fits_the_real_schema_and_meta_kernel(name, case, dtype):
    """Shapes and dtypes as torch_npu infers them are those of the reference."""
    run, limit = load(name, "npu")
    built = [x.detach() for x in make(case, device="cpu", dtype=dtype)]
    args, options = arguments(case, [x.clone() for x in built])
    expected = as_tuple(load(name, "reference")[0](*args, **options))
    mask = importlib.import_module("llm_kernels_npu.ops.attention.npu")._compressed_mask
    mask.cache_clear()
    with _disable_current_modes(), FakeTensorMode():
        tensors = [torch.empty(x.shape, dtype=x.dtype, device="npu") for x in built]
        args, options = arguments(case, tensors)
        assert limit(*args, **options) is None
        found = as_tuple(run(*args, **options))
    mask.cache_clear()
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in expected]
    assert {x.device.type for x in found} == {"npu"}


@pytest.mark.parametrize(("name", "case"), TAKEN)
def test_fused_operator_is_what_runs_forward_and_backward(name, case):
    dtype = torch.bfloat16 if name in HALF else torch.float32
    tensors = make(case, device="npu", dtype=dtype)
    args, options = arguments(case, tensors)
    active().calls.clear()
    outputs = as_tuple(getattr(kernels(device="npu"), name)(*args, **options))
    if case.differentiable:
        sum(out.sum() for out in outputs if out.requires_grad).backward()
    called = [call.removeprefix("npu::") for call in active().calls if call.startswith("npu::")]
    assert called == [FUSED[name], *([GRADIENT[name]] if case.differentiable else [])]


def test_auto_prints_what_serves_the_npu():
    line = str(kernels(device="npu", features={"attention": {"softcap"}}))
    assert "rms_norm npu, swiglu npu, rope npu, cross_entropy npu" in line
    assert "linear_cross_entropy torch" in line
    passed_over = r"npu has no softcap; triton needs [^;]+; torch has no softcap"
    assert re.search(rf"attention reference \({passed_over}\)", line), line


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
    assert len(lines) == len(FUSED) + len(EXPERTS)
    assert all(" ok " in line for line in lines)
