"""Layers on stages, against tables written by hand (MindSpeed-LLM's examples where it has one)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_ckpt.errors import LayoutError
from llm_ckpt.placement import Grid, Pipeline, Slot, slots_of


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
        (Pipeline(pp=2, layers_per_chunk=2), 8, [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]),
        (Pipeline(pp=2, schedule="dualpipev"), 8, [[[0, 1], [6, 7]], [[2, 3], [4, 5]]]),
        (
            Pipeline(pp=4, schedule="dualpipev"),
            8,
            [[[0], [7]], [[1], [6]], [[2], [5]], [[3], [4]]],
        ),
    ],
)
def test_layers_are_placed_as_megatron_places_them(pipeline, layers, wanted):
    resolved = pipeline.resolved(layers)
    assert by_stage(pipeline.place(layers), resolved.pp, resolved.vpp) == wanted


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
        (Pipeline(pp=2, noop_layers=(1, 1)), "a layer is named twice"),
        (
            Pipeline(pp=2, layers_per_chunk=3),
            r"layers\(4\) % \(pp\(2\) \* layers a chunk\(3\)\) = 4",
        ),
        (Pipeline(pp=2, vpp=2, layers_per_chunk=1), "want one of them"),
        (Pipeline(schedule="dualpipev"), r"2 chunks a stage and pp > 1; found pp\(1\)"),
        (Pipeline(pp=4, schedule="dualpipev"), r"layers\(4\) % \(pp\(4\) \* vpp\(2\)\) = 4"),
    ],
)
def test_a_layout_that_does_not_fit_shows_the_equation(pipeline, message):
    with pytest.raises(LayoutError, match=message):
        pipeline.place(4)


def places(grid):
    """(tp, ep) of a file → (piece of an expert, block of experts)."""
    return {(rank.tp, rank.ep): (rank.expert.rank, rank.block) for rank in grid.ranks()}


@pytest.mark.parametrize(
    ("grid", "wanted"),
    [
        (Grid(tp=2), {(0, 0): (0, 0), (1, 0): (1, 0)}),
        (Grid(ep=2), {(0, 0): (0, 0), (0, 1): (0, 1)}),
        # every pair of ranks, each expert cut in two
        (Grid(tp=2, ep=2), {(0, 0): (0, 0), (1, 0): (1, 0), (0, 1): (0, 1), (1, 1): (1, 1)}),
        # mindspeed.md 2.1: with etp 1 only ranks with tp == ep % TP (or ep == tp % EP) exist
        (Grid(tp=2, ep=2, etp=1), {(0, 0): (0, 0), (1, 1): (0, 1)}),
        (Grid(tp=2, ep=4, etp=1), {(0, 0): (0, 0), (1, 1): (0, 1), (0, 2): (0, 2), (1, 3): (0, 3)}),
        (Grid(tp=4, ep=2, etp=1), {(0, 0): (0, 0), (1, 1): (0, 1), (2, 0): (0, 0), (3, 1): (0, 1)}),
        # mindspeed.md 2.2: experts split over EP * TP
        (
            Grid(tp=2, ep=2, tp_extends_ep=True),
            {(0, 0): (0, 0), (1, 0): (0, 1), (0, 1): (0, 2), (1, 1): (0, 3)},
        ),
    ],
)
def test_ranks_are_dealt_out_as_megatron_core_does(grid, wanted):
    assert places(grid) == wanted


@given(tp=st.integers(1, 6), ep=st.integers(1, 6), etp=st.integers(1, 6))
def test_every_piece_of_every_block_is_in_some_file_or_the_grid_is_refused(tp, ep, etp):
    grid = Grid(tp=tp, ep=ep, etp=etp)
    try:
        found = grid.ranks()
    except LayoutError:
        assert tp % etp  # an etp that divides tp always works
        return
    assert {(r.expert.rank, r.block) for r in found} == {
        (piece, block) for piece in range(etp) for block in range(ep)
    }
    assert {r.tp for r in found} == set(range(tp))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            Grid(etp=2),
            r"tp\(1\), ep\(1\), etp\(2\): the file of tp rank 0 and ep rank 0 would hold",
        ),
        (Grid(tp=2, ep=2, etp=2, tp_extends_ep=True), r"cuts no expert: etp\(2\), want 1"),
    ],
)
def test_a_grid_whose_file_would_need_two_pieces_is_refused(grid, message):
    with pytest.raises(LayoutError, match=message):
        grid.ranks()


def test_experts_that_do_not_divide_show_the_equation():
    with pytest.raises(LayoutError, match=r"experts\(6\) % \(ep\(4\)\) = 2, want 0"):
        Grid(ep=4).check_experts(6)
    with pytest.raises(LayoutError, match=r"experts\(6\) % \(ep\(2\) \* tp\(2\)\) = 2, want 0"):
        Grid(tp=2, ep=2, tp_extends_ep=True).check_experts(6)
