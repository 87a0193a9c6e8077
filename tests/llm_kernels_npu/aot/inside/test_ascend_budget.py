"""Our table of on-chip memory against the Ascend compiler's own count of it."""

import dataclasses

import pytest
import torch

from llm_kernels_npu.ops import tiles
from llm_kernels_npu.ops.causal_conv1d.tiles import TAP_BYTES, UNIFIED_BUFFER_950_BYTES
from llm_kernels_npu.ops.recurrence_tiles import (
    RECURRENCE_COST,
    RecurrenceTile,
    unified_buffer_bytes,
)
from triton_aot import ascend, calls

OVERSIZE = 65_536
COSTS = [
    # In float32 the default tests take the first; the others last ran on 2026-11-27.
    pytest.param(
        cost,
        dtype,
        id=f"{cost}-{dtype}",
        marks=pytest.mark.slow if index and dtype is torch.float32 else (),
    )
    for index, cost in enumerate(tiles.ROW_COST)
    for dtype in (torch.bfloat16, torch.float32)
]


def variants(cost, dtype):
    """The launches that a row of the table is for, one of each variant of the kernel."""
    return [
        launch
        for operator in calls.CALLS
        for launch in calls.first_of_each_kernel(operator, dtype)
        if cost_of(operator, launch) == cost
    ]


def cost_of(operator, launch):
    part = launch.kernel.fn.__name__.removesuffix("_kernel")
    return f"{dict(launch.constants).get('ACTIVATION', operator)}.{part}"


def compiled_with_tile(launch, tile, folder):
    constants = tuple((key, tile if key == "TILE" else value) for key, value in launch.constants)
    linalg = ascend.lower(dataclasses.replace(launch, constants=constants))
    return ascend.compile_hivm(linalg, "Ascend910B3", folder)


@pytest.mark.parametrize(("cost", "dtype"), COSTS)
def test_budget_is_what_the_compiler_counts(cost, dtype, tmp_path):
    wanted = []
    for launch in variants(cost, dtype):
        outcome = compiled_with_tile(launch, OVERSIZE, tmp_path)
        assert outcome.overflow is not None, outcome.messages
        assert outcome.overflow[0] == "ub"
        wanted.append(outcome.overflow[1])
    ours = tiles.unified_buffer_bytes(cost, OVERSIZE, itemsize=dtype.itemsize)
    # The table has whole bytes a feature.
    assert 0 <= ours - max(wanted) < OVERSIZE, max(wanted) / OVERSIZE


@pytest.mark.parametrize(("cost", "dtype"), COSTS)
def test_largest_tile_of_the_budget_compiles(cost, dtype, tmp_path):
    most = tiles.row_tile(cost, OVERSIZE, itemsize=dtype.itemsize, target="npu", most=OVERSIZE)
    for launch in variants(cost, dtype):
        outcome = compiled_with_tile(launch, most, tmp_path)
        assert outcome.compiled, (most, outcome.messages)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_budget_of_rope_is_what_the_compiler_counts(dtype, tmp_path):
    wanted = []
    for launch in calls.first_of_each_kernel("rope", dtype):
        half = dict(launch.constants)["HALF"]
        outcome = compiled_with_tile(launch, OVERSIZE // 2 // half, tmp_path)
        assert outcome.overflow is not None, outcome.messages
        wanted.append(outcome.overflow[1] / (OVERSIZE // 2))
    assert 0.9 * tiles.ROPE_PAIR_BYTES < max(wanted) <= tiles.ROPE_PAIR_BYTES, wanted
    assert tiles.rope_tile(1 << 20, half=64, passing=0) * 64 * max(wanted) <= 196_608


BOTH = (torch.float32, torch.bfloat16)
OVERSIZE_RECURRENCES = (
    ("solve_kernel", (32, 64, 32), BOTH),
    ("solve_kernel", (32, 128, 32), BOTH),
    ("solve_kernel", (32, 256, 16), BOTH),
    ("gradient_kernel", (32, 128, 32), BOTH),
    ("gradient_kernel", (32, 256, 16), BOTH),
    ("gradient_kernel", (16, 512, 16), BOTH),
    # In bfloat16 the compiler finds another plan, without double buffers.
    ("gradient_kernel", (16, 256, 64), (torch.float32,)),
)
"""Twice the tokens or more features than a tile of a recurrence has, for the kernel it is over."""


def oversize_recurrences():
    """The default tests take the first; the others, three minutes, last ran on 2026-11-27."""
    for index, (kernel, sizes, dtypes) in enumerate(OVERSIZE_RECURRENCES):
        for dtype in dtypes:
            marks = () if index == 0 and dtype is torch.float32 else pytest.mark.slow
            label = f"{kernel}-{'x'.join(map(str, sizes))}-{dtype}"
            yield pytest.param(kernel, sizes, dtype, id=label, marks=marks)


@pytest.mark.parametrize(("kernel", "sizes", "dtype"), list(oversize_recurrences()))
def test_tile_of_a_recurrence_over_the_budget_is_over_the_compilers(kernel, sizes, dtype, tmp_path):
    assert kernel in RECURRENCE_COST
    tile = RecurrenceTile(**dict(zip(("chunk", "key", "value"), sizes, strict=True)))
    budget = unified_buffer_bytes(kernel, tile)
    assert budget > tiles.UNIFIED_BUFFER_BYTES
    launch = next(
        one for one in calls.launches("gated_delta_rule", dtype) if one.kernel.fn.__name__ == kernel
    )
    constants = tuple((name, tile.constants().get(name, value)) for name, value in launch.constants)
    linalg = ascend.lower(dataclasses.replace(launch, constants=constants))
    outcome = ascend.compile_hivm(linalg, "Ascend910B3", tmp_path)
    assert outcome.overflow is not None, outcome.messages
    memory, counted = outcome.overflow
    assert memory == "ub"
    # The compiler plans by dtype, and not by these sizes alone.
    assert 0.7 * budget < counted <= budget


# A minute: before it gives up, the compiler looks for another plan. Last run 2026-11-27.
@pytest.mark.slow
def test_budget_of_causal_conv1d_is_what_the_compiler_counts_for_a_950(tmp_path):
    launch = next(
        one
        for one in calls.launches("causal_conv1d", torch.float32)
        if one.kernel.fn.__name__ == "weight_kernel" and dict(one.constants)["WIDTH"] == 4
    )
    rows, columns = (dict(launch.constants)[name] for name in ("ROWS", "COLUMNS"))
    doubled = tuple((key, 2 * rows if key == "ROWS" else value) for key, value in launch.constants)
    linalg = ascend.lower(dataclasses.replace(launch, constants=doubled))
    outcome = ascend.compile_hivm(linalg, "Ascend950PR_9589", tmp_path)
    assert outcome.overflow is not None, outcome.messages
    budget = TAP_BYTES * 4 * 2 * rows * columns
    assert budget > UNIFIED_BUFFER_950_BYTES
    assert 0.9 * budget < outcome.overflow[1] <= budget
