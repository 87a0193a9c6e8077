"""Columns of a batch while they grow: ids, labels, ones."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from llm_data.encode import Column, ColumnDtype, EncodedColumn

IGNORED = -100

_TYPECODES: Mapping[ColumnDtype, str] = MappingProxyType({"uint16": "H", "int32": "i"})


class IdColumn:
    """Rows of ids end to end."""

    def __init__(self, dtype: ColumnDtype) -> None:
        self.tokens: array[int] = array(_TYPECODES[dtype])
        self.lengths = array("i")

    def append(self, ids: Sequence[int]) -> None:
        """One more row."""
        self.tokens.extend(ids)
        self.lengths.append(len(ids))

    def encoded(self) -> EncodedColumn:
        """The rows as they go to a file."""
        return EncodedColumn(self.tokens.tobytes(), self.lengths.tobytes())

    def ones(self) -> EncodedColumn:
        """A column of this one's shape that is 1 everywhere: its attention mask."""
        ones = array(self.tokens.typecode, [1]) * len(self.tokens)
        return EncodedColumn(ones.tobytes(), self.lengths.tobytes())


class LabelColumn:
    """Rows of labels: an id where a token is learned, `IGNORED` elsewhere."""

    def __init__(self) -> None:
        self._column = IdColumn("int32")
        self.num_learned = 0

    def append(self, ids: Sequence[int], learned: Iterable[tuple[int, int]]) -> None:
        """One more row; `learned` are stretches of positions, in order and disjoint."""
        labels = self._column.tokens
        position = 0
        for start, end in learned:
            labels.extend(_IGNORED * (start - position))
            labels.extend(ids[start:end])
            self.num_learned += end - start
            position = end
        labels.extend(_IGNORED * (len(ids) - position))
        self._column.lengths.append(len(ids))

    def encoded(self) -> EncodedColumn:
        """The rows as they go to a file."""
        return self._column.encoded()


_IGNORED = array("i", [IGNORED])


def labels_column(name: str) -> Column:
    """A column of labels; they are negative where nothing is learned."""
    return Column(name=name, dtype="int32")


def one_sequence_each(count: int) -> bytes:
    """The sizes of documents that are one sequence each."""
    return array("i", [1] * count).tobytes()
