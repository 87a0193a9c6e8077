"""Every Triton kernel through the Ascend compiler."""

import math

import pytest
import torch

from llm_kernels_npu.ops import tiles
from llm_kernels_npu.ops.launch import TARGET
from triton_aot import ascend, calls

DTYPES = (torch.float32, torch.bfloat16)


def test_tiles_are_the_npus():
    assert TARGET == "npu"


# The default tests compile float32 of one operator, and execute it of all. The others, and the
# operators that take long, last ran on 2026-11-27.
ALL = [
    pytest.param(
        name,
        dtype,
        id=f"{name}-{dtype}",
        marks=pytest.mark.slow
        if name in calls.LONG or (dtype is torch.float32 and name != "rms_norm")
        else (),
    )
    for name in calls.CALLS
    for dtype in DTYPES
]


def compiles(launches, folder, chips=tuple(ascend.TARGETS)):
    for launch in launches:
        linalg = ascend.lower(launch)
        for chip in chips:
            outcome = ascend.compile_hivm(linalg, chip, folder)
            assert outcome.compiled, (str(launch), chip, outcome.messages)


@pytest.mark.parametrize(("name", "dtype"), ALL)
def test_every_tile_compiles_to_hivm_for_every_chip(name, dtype, tmp_path):
    compiles(calls.launches(name, dtype), tmp_path)


# The kernels of mamba2_scan are among gated_delta_rule's.
@pytest.mark.parametrize("name", sorted(calls.LONG - {"mamba2_scan"}))
def test_each_kernel_compiles_to_hivm_for_a_910b(name, tmp_path):
    launches = calls.first_of_each_kernel(name, torch.bfloat16, variants=False)
    compiles(launches, tmp_path, ["Ascend910B3"])


@pytest.mark.parametrize("name", calls.CALLS)
def test_no_launch_has_more_programs_than_an_npu_takes(name):
    for launch, grid in calls.launches(name, torch.bfloat16).items():
        assert 0 < math.prod(grid) <= tiles.MAX_PROGRAMS, (str(launch), grid)
