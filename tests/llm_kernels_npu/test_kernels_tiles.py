"""Tiles: which one each size takes; none over an NPU's on-chip memory or number of programs."""

import pytest

from llm_kernels_npu.ops import tiles
from llm_kernels_npu.ops.causal_conv1d.tiles import conv_tile
from llm_kernels_npu.ops.recurrence_tiles import (
    MAX_DIM,
    RECURRENCE_COST,
    RecurrenceTile,
    recurrence_tile,
    unified_buffer_bytes,
)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("cost", tiles.ROW_COST)
def test_npu_tile_fits_the_unified_buffer_and_twice_it_does_not(cost, itemsize):
    tile = tiles.row_tile(cost, 1 << 20, itemsize=itemsize, target="npu", most=1 << 20)
    need = tiles.unified_buffer_bytes(cost, tile, itemsize=itemsize)
    # A 950 needs up to 1.6 times that share of its Unified Buffer.
    assert 1.6 * need <= 196_608 < 2 * 1.6 * need


def test_tile_holds_a_row_where_it_can():
    sizes = {1: 1, 64: 64, 65: 128, 4096: 4096, 5000: 8192, 16_384: 16_384, 20_480: 16_384}
    for size, tile in sizes.items():
        assert tiles.row_tile("rms_norm.forward", size, itemsize=2, target="cuda") == tile
    # 26 bytes a feature: 8192 of them would be 208 KiB.
    assert tiles.row_tile("rms_norm.backward", 8192, itemsize=2, target="npu") == 4096


def test_programs_of_all_axes_stay_within_what_an_npu_takes():
    assert tiles.programs(10) == 10
    assert tiles.programs(1 << 20) == 65_535
    assert tiles.programs(1 << 20, others=4) * 4 <= 65_535
    assert tiles.programs(5, others=1 << 20) == 1


def test_tile_of_a_convolution_fits_a_950_and_has_no_more_rows_than_tokens():
    # 19 bytes a tap and element of 253,952: 3341 elements of four taps, 1670 of eight.
    assert conv_tile(4096, 8192, width=4, target="npu").constants() == {"ROWS": 16, "COLUMNS": 128}
    assert conv_tile(4096, 8192, width=8, target="npu").constants() == {"ROWS": 8, "COLUMNS": 128}
    assert conv_tile(4096, 8192, width=8, target="cuda").constants() == {"ROWS": 32, "COLUMNS": 128}
    assert conv_tile(1, 6, width=4, target="npu").constants() == {"ROWS": 1, "COLUMNS": 8}


def test_tile_of_a_recurrence_holds_a_key_and_no_more_tokens_than_there_are():
    wanted = {"CHUNK": 16, "KEY": 128, "VALUE": 32}
    assert recurrence_tile(4096, 128, 128, target="npu").constants() == wanted
    wanted = {"CHUNK": 64, "KEY": 64, "VALUE": 32}
    assert recurrence_tile(4096, 50, 64, target="cuda").constants() == wanted
    wanted = {"CHUNK": 16, "KEY": 16, "VALUE": 16}
    assert recurrence_tile(1, 4, 4, target="cuda").constants() == wanted
    assert recurrence_tile(4096, MAX_DIM, MAX_DIM, target="npu").key == MAX_DIM


@pytest.mark.parametrize(("key", "value"), [(16, 32), (64, 32), (128, 32), (256, 16)])
def test_npu_tile_of_a_recurrence_fits_and_one_of_twice_the_tokens_does_not(key, value):
    tile = recurrence_tile(4096, key, 256, target="npu")
    assert tile == RecurrenceTile(chunk=16, key=key, value=value)
    longer = RecurrenceTile(chunk=32, key=key, value=value)
    needs, more = (
        max(unified_buffer_bytes(kernel, one) for kernel in RECURRENCE_COST)
        for one in (tile, longer)
    )
    assert needs <= 196_608 < more


def test_keys_wider_than_any_tile_are_refused_with_the_bytes_they_take():
    # 142 * 16 * 16 + 29.5 * 16 * 512.
    with pytest.raises(ValueError, match=r"512 features take 278016 bytes .* 196608 are there"):
        recurrence_tile(4096, 512, 64, target="npu")
