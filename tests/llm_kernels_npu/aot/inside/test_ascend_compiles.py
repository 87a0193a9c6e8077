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


ALL = [
    pytest.param(name, marks=pytest.mark.slow if name in calls.LONG else ()) for name in calls.CALLS
]


def compiles(launches, folder):
    for launch in launches:
        linalg = ascend.lower(launch)
        for chip in ascend.TARGETS:
            outcome = ascend.compile_hivm(linalg, chip, folder)
            assert outcome.compiled, (str(launch), chip, outcome.messages)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_every_tile_compiles_to_hivm_for_every_chip(name, dtype, tmp_path):
    compiles(calls.launches(name, dtype), tmp_path)


@pytest.mark.parametrize("name", sorted(calls.LONG))
def test_each_kernel_compiles_to_hivm_for_every_chip(name, tmp_path):
    compiles(calls.first_of_each_kernel(name, torch.bfloat16, variants=False), tmp_path)


@pytest.mark.parametrize("name", calls.CALLS)
def test_no_launch_has_more_programs_than_an_npu_takes(name):
    for launch, grid in calls.launches(name, torch.bfloat16).items():
        assert 0 < math.prod(grid) <= tiles.MAX_PROGRAMS, (str(launch), grid)
