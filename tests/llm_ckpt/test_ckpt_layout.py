"""Cutting, joining, vocabulary padding and exact tiling."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_ckpt.errors import LayoutError
from llm_ckpt.layout import (
    COLUMNS,
    GATED,
    ROWS,
    VOCAB,
    WHOLE,
    Box,
    Cut,
    Shard,
    assemble,
    cut,
    join,
    missing_part,
    padded_vocab,
    piece_boxes,
    whole,
)

CUTS = (WHOLE, ROWS, COLUMNS, GATED, VOCAB, Cut(0, (1, 1, 2, 2)))


@pytest.mark.parametrize(
    ("vocab", "multiple", "tp", "wanted"),
    [
        (250, 128, 1, 256),
        (250, 128, 2, 256),
        (250, 128, 4, 512),
        (257, 1, 2, 258),
        (256, 128, 2, 256),
    ],
)
def test_vocabulary_is_padded_to_a_multiple_of_the_multiple_times_tp(vocab, multiple, tp, wanted):
    assert padded_vocab(vocab, multiple=multiple, tp=tp) == wanted


@given(
    how=st.sampled_from(CUTS),
    tp=st.sampled_from([1, 2, 3, 4]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
)
def test_join_undoes_cut(how, tp, rows, columns):
    tensor = torch.rand(6 * tp * rows, 3 * tp * columns)
    pieces = [cut(tensor, how, Shard(rank, tp)) for rank in range(tp)]
    assert torch.equal(join(pieces, how), tensor)


@given(how=st.sampled_from([ROWS, COLUMNS, GATED, VOCAB]), tp=st.integers(1, 4))
def test_the_boxes_of_all_ranks_tile_the_tensor(how, tp):
    shape = (4 * tp, 3 * tp)
    boxes = [
        box for rank in range(tp) for box in piece_boxes(shape, how, Shard(rank, tp), where="t")
    ]
    assert missing_part(shape, boxes) is None
    assert "elements are stored" in missing_part(shape, boxes[1:])
    assert "overlap" in missing_part(shape, [*boxes, boxes[0]])


def test_columns_go_to_their_rank():
    tensor = torch.arange(8).reshape(2, 4)
    assert cut(tensor, COLUMNS, Shard(1, 2)).tolist() == [[2, 3], [6, 7]]


def test_padding_rows_are_zero_and_only_real_rows_are_read():
    asked = []

    def fill(box, out):
        asked.append(box)
        out.fill_(1.0)

    boxes = piece_boxes((8, 2), VOCAB, Shard(1, 2), where="embedding")
    out = assemble(boxes, (5, 2), torch.float32, fill)
    assert out.tolist() == [[1.0, 1.0]] + [[0.0, 0.0]] * 3
    assert asked == [Box((4, 0), (5, 2))]


def test_a_rank_of_padding_only_is_all_zero():
    boxes = piece_boxes((8, 2), VOCAB, Shard(3, 4), where="embedding")
    assert not assemble(boxes, (5, 2), torch.float32, lambda box, out: out.fill_(1)).any()


def test_a_size_that_does_not_divide_says_which_number():
    with pytest.raises(LayoutError, match=r"fc1: 9 rows of each half do not divide by tp\(2\)"):
        piece_boxes((18, 4), GATED, Shard(0, 2), where="fc1")
    with pytest.raises(LayoutError, match=r"7 columns do not divide by tp\(2\): 7 % 2 = 1"):
        piece_boxes((4, 7), COLUMNS, Shard(0, 2), where="fc2")


def test_a_chunk_outside_is_not_a_tiling():
    assert "outside" in missing_part((4, 4), [whole((4, 4)), Box((4, 0), (5, 4))])
