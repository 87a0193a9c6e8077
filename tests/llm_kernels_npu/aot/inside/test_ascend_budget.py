"""Our table of on-chip memory against the Ascend compiler's own count of it."""

import dataclasses

import pytest
import torch

from llm_kernels_npu.ops import tiles
from triton_aot import ascend, calls

OVERSIZE = 65_536
COSTS = [
    pytest.param(kernel, dtype, id=f"{kernel}-{dtype}")
    for kernel in tiles.ROW_COST
    for dtype in (torch.bfloat16, torch.float32)
]


def compiled_with_tile(kernel, dtype, tile, folder):
    """The outcome for the first launch of a kernel, its tile changed."""
    operator, part = kernel.split(".")
    found = calls.launches(operator, dtype)
    launch = next(launch for launch in found if launch.name == f"{operator}.{part}_kernel")
    constants = tuple((key, tile if key == "TILE" else value) for key, value in launch.constants)
    linalg = ascend.lower(dataclasses.replace(launch, constants=constants))
    return ascend.compile_hivm(linalg, "Ascend910B3", folder)


@pytest.mark.parametrize(("kernel", "dtype"), COSTS)
def test_budget_is_what_the_compiler_counts(kernel, dtype, tmp_path):
    outcome = compiled_with_tile(kernel, dtype, OVERSIZE, tmp_path)
    assert outcome.overflow is not None, outcome.messages
    memory, wanted = outcome.overflow
    assert memory == "ub"
    assert tiles.unified_buffer_bytes(kernel, OVERSIZE, itemsize=dtype.itemsize) == wanted


@pytest.mark.parametrize(("kernel", "dtype"), COSTS)
def test_largest_tile_of_the_budget_compiles(kernel, dtype, tmp_path):
    most = tiles.row_tile(kernel, OVERSIZE, itemsize=dtype.itemsize, target="npu", most=OVERSIZE)
    outcome = compiled_with_tile(kernel, dtype, most, tmp_path)
    assert outcome.compiled, (most, outcome.messages)
