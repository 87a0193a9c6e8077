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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", calls.CALLS)
def test_every_tile_compiles_to_hivm_for_every_chip(name, dtype, tmp_path):
    for launch in calls.launches(name, dtype):
        linalg = ascend.lower(launch)
        for chip in ascend.TARGETS:
            outcome = ascend.compile_hivm(linalg, chip, tmp_path)
            assert outcome.compiled, (str(launch), chip, outcome.messages)


@pytest.mark.parametrize("name", calls.CALLS)
def test_no_launch_has_more_programs_than_an_npu_takes(name):
    for launch, grid in calls.launches(name, torch.bfloat16).items():
        assert 0 < math.prod(grid) <= tiles.MAX_PROGRAMS, (str(launch), grid)
