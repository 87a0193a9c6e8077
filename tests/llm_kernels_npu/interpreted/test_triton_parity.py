"""Every Triton backend under the interpreter, against its reference: outputs and gradients."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.ops.launch import INTERPRETED
from llm_kernels_npu.parity import Result, compare
from llm_kernels_npu.registry import OPERATORS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WRITTEN = [
    name
    for name, entry in OPERATORS.items()
    if any(backend.name == "triton" for backend in entry.backends)
]


def cases_of(name):
    return importlib.import_module(f"llm_kernels_npu.ops.{name}.cases")


def equals_reference(name, case, dtype):
    result = compare(name, "triton", case, device="cpu", dtype=dtype)
    assert isinstance(result, Result), result
    assert result.passed, (case.name, dtype, result.worst)


def test_kernels_are_interpreted():
    assert INTERPRETED


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{case.name}")
        for name in WRITTEN
        for case in check_cases(name)
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_equals_reference(name, case, dtype):
    entry = OPERATORS[name].backend("triton")
    if entry.lacks & case.features:
        assert isinstance(compare(name, "triton", case, device="cpu", dtype=dtype), str)
        return
    equals_reference(name, case, dtype)


NORMS = ("rms_norm", "add_rms_norm", "layer_norm")
GATED = ("swiglu", "geglu")
ROWS = st.integers(0, 5)
# A norm of few features has a gradient of nothing but rounding.
SIZES = st.integers(16, 300)
few = settings(max_examples=12, deadline=None, derandomize=True)


@few
@given(rows=ROWS, size=SIZES, dtype=st.sampled_from(DTYPES), name=st.sampled_from(NORMS))
def test_norms_of_any_shape(rows, size, dtype, name):
    equals_reference(name, cases_of(name).case(rows, size, offset=1.0), dtype)


@few
@given(rows=ROWS, size=SIZES, dtype=st.sampled_from(DTYPES), name=st.sampled_from(GATED))
def test_gated_units_of_any_shape(rows, size, dtype, name):
    equals_reference(name, cases_of(name).case(rows, 2 * size), dtype)


# Rows wider than the widest tile: loops over tiles, and the weight's gradient by its own kernel.
@pytest.mark.parametrize("name", NORMS)
def test_norms_of_rows_of_several_tiles(name):
    equals_reference(name, cases_of(name).case(3, 16_384 + 77), torch.bfloat16)


def test_gated_unit_of_rows_of_several_tiles():
    equals_reference("swiglu", cases_of("swiglu").case(3, 2 * (4096 + 77)), torch.float32)
