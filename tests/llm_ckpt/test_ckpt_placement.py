"""Layers on stages, against tables written by hand (MindSpeed-LLM's examples where it has one)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_ckpt.errors import LayoutError
from llm_ckpt.placement import Pipeline, Slot, slots_of


def by_stage(slots, pp, vpp):
    """stage → chunk → global layers."""
    table = [[[] for _ in range(vpp)] for _ in range(pp)]
    for layer, slot in enumerate(slots):
        assert slot.local == len(table[slot.stage][slot.chunk])
        table[slot.stage][slot.chunk].append(layer)
    return table


@pytest.mark.parametrize(
    ("pipeline", "layers", "wanted"),
    [
        (Pipeline(), 3, [[[0, 1, 2]]]),
        (Pipeline(pp=2), 4, [[[0, 1]], [[2, 3]]]),
        (Pipeline(pp=2, vpp=2), 8, [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]),
        (Pipeline(pp=2, layers_per_stage=(3, 1)), 4, [[[0, 1, 2]], [[3]]]),
        (
            Pipeline(pp=4, vpp=2),
            8,
            [[[0], [4]], [[1], [5]], [[2], [6]], [[3], [7]]],
        ),
    ],
)
def test_layers_are_placed_as_megatron_places_them(pipeline, layers, wanted):
    assert by_stage(pipeline.place(layers), pipeline.pp, pipeline.vpp) == wanted


def test_noop_layers_leave_a_gap_in_the_local_numbers():
    slots = Pipeline(pp=2, noop_layers=(1, 5)).place(4)
    assert slots == (Slot(0, 0, 0), Slot(0, 0, 2), Slot(1, 0, 0), Slot(1, 0, 1))


@given(pp=st.integers(1, 4), vpp=st.integers(1, 3), per=st.integers(1, 3))
def test_slots_of_stored_chunk_sizes_are_the_slots_they_were_written_with(pp, vpp, per):
    vpp = vpp if pp > 1 else 1
    sizes = (per,) * (pp * vpp)
    pipeline = Pipeline(pp=pp, vpp=vpp)
    assert slots_of(sizes, pipeline.places()) == pipeline.place(per * pp * vpp)


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (Pipeline(pp=3), r"layers\(4\) % \(pp\(3\) \* vpp\(1\)\) = 1, want 0"),
        (Pipeline(pp=2, vpp=4), r"layers\(4\) % \(pp\(2\) \* vpp\(4\)\) = 4"),
        (Pipeline(vpp=2), r"vpp\(2\) needs pp > 1"),
        (Pipeline(pp=2, layers_per_stage=(3, 2)), r"3 \+ 2 = 5, want 4 layers"),
        (Pipeline(pp=2, layers_per_stage=(4, 0)), "at least 1 a stage"),
        (Pipeline(pp=2, layers_per_stage=(4,)), "has 1 entries, pp is 2"),
        (Pipeline(pp=2, vpp=2, layers_per_stage=(2, 2)), "neither vpp nor noop"),
        (Pipeline(pp=2, noop_layers=(9,)), r"noop layer 9 is not in 0\.\.4"),
    ],
)
def test_a_layout_that_does_not_fit_shows_the_equation(pipeline, message):
    with pytest.raises(LayoutError, match=message):
        pipeline.place(4)
