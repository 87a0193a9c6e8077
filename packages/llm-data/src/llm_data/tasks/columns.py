"""Columns of a batch while they grow: ids, labels, ones."""

from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from llm_data.encode import Column, ColumnDtype, EncodedColumn
from llm_data.tasks.byte_lengths import Ids

IGNORED = -100


class IdColumn:
    """Rows of ids end to end."""

    def __init__(self, dtype: ColumnDtype) -> None:
        self._dtype = np.dtype(dtype)
        self._rows: list[Ids] = []
        self.num_tokens = 0

    def append(self, ids: Ids) -> None:
        """One more row."""
        self._rows.append(ids)
        self.num_tokens += len(ids)

    def encoded(self) -> EncodedColumn:
        """The rows as they go to a file."""
        # Every id fits: the type was chosen by the vocabulary.
        return EncodedColumn(_joined(self._rows).astype(self._dtype).tobytes(), self._lengths())

    def ones(self) -> EncodedColumn:
        """A column of this one's shape that is 1 everywhere: its attention mask."""
        return EncodedColumn(np.ones(self.num_tokens, self._dtype).tobytes(), self._lengths())

    def _lengths(self) -> bytes:
        return np.fromiter(map(len, self._rows), np.int32, len(self._rows)).tobytes()


class LabelColumn:
    """Rows of labels: an id where a token is learned, `IGNORED` elsewhere."""

    def __init__(self) -> None:
        self._column = IdColumn("int32")
        self.num_learned = 0

    def append(self, ids: Ids, learned: Iterable[tuple[int, int]]) -> None:
        """One more row; `learned` are stretches of positions, in order and disjoint."""
        labels = np.full(len(ids), IGNORED, np.int32)
        for start, end in learned:
            labels[start:end] = ids[start:end]
            self.num_learned += end - start
        self._column.append(labels)

    def encoded(self) -> EncodedColumn:
        """The rows as they go to a file."""
        return self._column.encoded()


def labels_column(name: str) -> Column:
    """A column of labels; they are negative where nothing is learned."""
    return Column(name=name, dtype="int32")


def one_sequence_each(count: int) -> bytes:
    """The sizes of documents that are one sequence each."""
    return array("i", [1] * count).tobytes()


def _joined(rows: list[Ids]) -> NDArray[np.int32]:
    return np.concatenate(rows) if rows else np.empty(0, np.int32)
