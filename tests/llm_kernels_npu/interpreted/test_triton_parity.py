"""Every Triton backend under the interpreter, against its reference: outputs and gradients."""

from types import MappingProxyType

import pytest
import torch

from llm_kernels_npu.cases import check_cases
from llm_kernels_npu.ops.launch import INTERPRETED
from llm_kernels_npu.parity import compare
from llm_kernels_npu.registry import OPERATORS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHORT = MappingProxyType({"gated_delta_rule": (0, 3), "mamba2_scan": (0, 1, 3)})
"""Which cases the default tests take of operators whose others are of many tokens and heads."""


def all_calls():
    """Every case in every dtype; the default tests take one dtype a case, in turn."""
    for name, entry in OPERATORS.items():
        lacks = next((b.lacks for b in entry.backends if b.name == "triton"), None)
        if lacks is None:
            continue
        for index, case in enumerate(check_cases(name)):
            for turn, dtype in enumerate(DTYPES):
                is_turn = turn == index % len(DTYPES) and index in SHORT.get(name, (index,))
                marks = () if is_turn else pytest.mark.slow
                label = f"{name}-{case.name}-{dtype}"
                yield pytest.param(name, case, dtype, lacks, id=label, marks=marks)


def test_kernels_are_interpreted():
    assert INTERPRETED


# The slow ones, two minutes, last run by hand on 2026-11-27.
@pytest.mark.parametrize(("name", "case", "dtype", "lacks"), list(all_calls()))
def test_triton_equals_reference(name, case, dtype, lacks):
    result = compare(name, "triton", case, device="cpu", dtype=dtype)
    if lacks & case.features:
        assert isinstance(result, str)
        return
    assert not isinstance(result, str), result
    assert result.passed, result.worst
