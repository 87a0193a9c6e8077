"""What a verifier refuses in a sample dataset, looked at a block of rows at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_data.errors import FormatError
from llm_data.formats.indexed import Index, check_tables
from llm_data.formats.sample_dataset import SampleDataset
from llm_data.formats.sample_manifest import IGNORED_LABEL, SampleManifest, Side
from llm_data.formats.token_dataset import TokenDataset

# Tokens, and rows, in a block: memory does not grow with the dataset.
_BLOCK_TOKENS = 1 << 20
_BLOCK_ROWS = 1 << 16

# Where the label of a token is the token itself, if it is learned.
_LABELS_ARE_TOKENS = frozenset({"sft", "pairwise"})


# Entries `start` to `end` of a pair.
Read = Callable[[TokenDataset, int, int], NDArray[np.integer]]


@dataclass(slots=True, kw_only=True)
class _Check:
    """A dataset, how to read it, and what was counted so far."""

    dataset: SampleDataset
    read: Read
    num_samples: int = 0
    num_tokens: int = 0
    num_loss_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Rows `first` to `first + len(lengths)` of one side, laid end to end.

    lengths: int64 [rows], entries of each row.
    sample_starts: int64 [samples], where each sample begins.
    ordinals: int64 [entries], the number of the sample in its row from 1; 0 in what fills a row.
    """

    first: int
    lengths: NDArray[np.int64]
    sample_starts: NDArray[np.int64]
    ordinals: NDArray[np.int64]

    def of(self, column: TokenDataset, read: Read) -> NDArray[np.integer]:
        """The block's entries of a column."""
        start = int(column.index.pointers[self.first]) // column.index.dtype.itemsize
        return read(column, start, start + len(self.ordinals))

    def place(self, at: int) -> str:
        """The row and position of an entry."""
        ends = np.cumsum(self.lengths)
        row = int(np.searchsorted(ends, at, side="right"))
        return f"row {self.first + row}, position {at - int(ends[row] - self.lengths[row])}"


def check_shape(dataset: SampleDataset) -> None:
    """Refuse what can be seen in constant time: element types and numbers of rows."""
    manifest = dataset.manifest
    for column in manifest.columns:
        _check_pair(dataset.columns[column.name], manifest, dtype=column.dtype)
    if dataset.boundaries_of_rows is not None:
        _check_pair(dataset.boundaries_of_rows, manifest, dtype="int32")


def check_samples(dataset: SampleDataset, read: Read) -> None:
    """Refuse tables, rows, labels, masks, boundaries and counts that are not as the SPEC says.

    Entries come from `read`, some 2**20 at a time, and not from the mapped arrays, whose pages
    would count as memory.
    """
    manifest, check = dataset.manifest, _Check(dataset=dataset, read=read)
    pairs = list(dataset.columns.values())
    if dataset.boundaries_of_rows is not None:
        pairs.append(dataset.boundaries_of_rows)
    for pair in pairs:
        check_tables(pair.index, where=f"{pair.name}.idx")
        _check_documents(pair.index, where=f"{pair.name}.idx")
    for side in manifest.sides:
        for block in _blocks(check, side):
            _check_side(check, side, block)
    beyond = set(dataset.columns) - {name for side in manifest.sides for name in side.columns}
    for name in sorted(beyond):
        _check_further(dataset.columns[name], check)
    if not manifest.packed:
        check.num_samples = manifest.num_rows
    for name in ("num_samples", "num_tokens", "num_loss_tokens"):
        said, counted = getattr(manifest, name), getattr(check, name)
        if said != counted:
            raise FormatError(f"{dataset.name}.json: {name} {said}, but the columns have {counted}")


def _check_pair(pair: TokenDataset, manifest: SampleManifest, *, dtype: str) -> None:
    if pair.index.dtype.name != dtype:
        raise FormatError(
            f"{pair.name}.idx: dtype {pair.index.dtype.name}, the manifest wants {dtype}"
        )
    for what, count in (
        ("sequences", pair.index.num_sequences),
        ("documents", pair.index.num_documents),
    ):
        if count != manifest.num_rows:
            raise FormatError(
                f"{pair.name}.idx: {count} {what}, the manifest wants {manifest.num_rows} rows"
            )


def _check_documents(index: Index, *, where: str) -> None:
    for first in range(0, index.num_documents, _BLOCK_ROWS):
        wrong = np.diff(index.documents[first : first + _BLOCK_ROWS + 1]) != 1
        _refuse(
            wrong,
            lambda at, first=first: (
                f"{where}: document {first + at} is not one sequence, want one a row"
            ),
        )


def _blocks(check: _Check, side: Side) -> Iterator[_Block]:
    """The rows of a side, after checking their lengths and boundaries."""
    dataset = check.dataset
    own, *others = (dataset.columns[name] for name in side.columns)
    first, num_rows = 0, len(own.index.lengths)
    while first < num_rows:
        ends = np.cumsum(own.index.lengths[first : first + _BLOCK_ROWS], dtype=np.int64)
        end = first + max(1, int(np.searchsorted(ends, _BLOCK_TOKENS, side="right")))
        lengths = own.index.lengths[first:end].astype(np.int64)
        for other in others:
            _check_equal_lengths(own, other, first=first, end=end)
        _check_lengths(dataset.manifest, lengths, where=f"{own.name}.idx", first=first)
        if dataset.boundaries_of_rows is None:
            starts = np.cumsum(lengths) - lengths
            ones = np.ones(int(lengths.sum()), dtype=np.int64)
            yield _Block(first=first, lengths=lengths, sample_starts=starts, ordinals=ones)
        else:
            yield _packed_block(dataset.boundaries_of_rows, check.read, first, lengths)
        first = end


def _check_equal_lengths(own: TokenDataset, other: TokenDataset, *, first: int, end: int) -> None:
    found, wanted = other.index.lengths[first:end], own.index.lengths[first:end]
    _refuse(
        found != wanted,
        lambda at: (
            f"{other.name}.idx: row {first + at} has {found[at]} entries, want "
            f"{wanted[at]} as in {own.name}"
        ),
    )


def _check_lengths(
    manifest: SampleManifest, lengths: NDArray[np.int64], *, where: str, first: int
) -> None:
    most = manifest.seq_length
    if manifest.packed:
        wrong, wanted = lengths != most, f"want {most}"
    elif most is None:
        wrong, wanted = lengths < 1, "want at least 1"
    else:
        wrong, wanted = (lengths < 1) | (lengths > most), f"want 1 to {most}"
    _refuse(wrong, lambda at: f"{where}: row {first + at} has {lengths[at]} entries, {wanted}")


def _packed_block(
    boundaries: TokenDataset, read: Read, first: int, lengths: NDArray[np.int64]
) -> _Block:
    """Rows cut by their boundaries; what follows the last one fills the row."""
    where = f"{boundaries.name}.bin"
    counts = boundaries.index.lengths[first : first + len(lengths)].astype(np.int64)
    _refuse(
        counts < 2,
        lambda at: (
            f"{where}: row {first + at} has {counts[at]} boundaries, want at least 2: 0 "
            "and the end of a sample"
        ),
    )
    start = int(boundaries.index.pointers[first]) // boundaries.index.dtype.itemsize
    values = read(boundaries, start, start + int(counts.sum())).astype(np.int64)
    heads = np.cumsum(counts) - counts
    row_of = np.repeat(np.arange(len(counts)), counts)
    # Each boundary begins a piece that ends at the next one, the last one's with the row.
    is_last = np.zeros(len(values), dtype=bool)
    is_last[heads + counts - 1] = True
    ends = np.append(values[1:], 0)
    ends[is_last] = lengths
    _refuse(
        values[heads] != 0,
        lambda at: f"{where}: row {first + at} starts with {values[heads[at]]}, want 0",
    )
    _refuse(
        ~is_last & (ends <= values),
        lambda at: (
            f"{where}: row {first + row_of[at]} has {ends[at]} after {values[at]}, want "
            "boundaries that increase"
        ),
    )
    _refuse(
        is_last & (ends < values),
        lambda at: (
            f"{where}: row {first + row_of[at]} ends its samples at {values[at]}, want at "
            f"most {ends[at]}"
        ),
    )
    row_starts = np.cumsum(lengths) - lengths
    numbers = np.arange(len(values)) - heads[row_of] + 1
    return _Block(
        first=first,
        lengths=lengths,
        sample_starts=(row_starts[row_of] + values)[~is_last],
        ordinals=np.repeat(np.where(is_last, 0, numbers), ends - values),
    )


def _check_side(check: _Check, side: Side, block: _Block) -> None:
    """A block's ids, labels and mask against each other; adds to what was counted."""
    manifest, columns = check.dataset.manifest, check.dataset.columns
    own = columns[side.input_ids]
    ids, is_sample = block.of(own, check.read), block.ordinals > 0
    _check_ids(ids, manifest, name=own.name, place=block.place)
    if manifest.packed:
        _refuse(
            ~is_sample & (ids != manifest.pad_id),
            lambda at: (
                f"{own.name}.bin: {block.place(at)}: {ids[at]} fills the row, want "
                f"{manifest.pad_id}"
            ),
        )
        check.num_samples += len(block.sample_starts)
    check.num_tokens += int(np.count_nonzero(is_sample))
    if side.attention_mask is not None:
        _check_mask(columns[side.attention_mask], block, check.read)
    if side.labels is not None:
        labels = columns[side.labels]
        check.num_loss_tokens += _check_labels(check, labels, block, ids=ids)


def _check_mask(column: TokenDataset, block: _Block, read: Read) -> None:
    mask = block.of(column, read)
    _refuse(
        mask != block.ordinals,
        lambda at: (
            f"{column.name}.bin: {block.place(at)}: mask {mask[at]}, want {block.ordinals[at]}"
        ),
    )


def _check_labels(
    check: _Check, column: TokenDataset, block: _Block, *, ids: NDArray[np.integer]
) -> int:
    """The number of labels that are learned."""
    manifest = check.dataset.manifest
    labels, where = block.of(column, check.read), f"{column.name}.bin"
    is_learned = labels != IGNORED_LABEL
    _refuse(
        is_learned[block.sample_starts],
        lambda at: (
            f"{where}: {block.place(int(block.sample_starts[at]))}: a sample's first label "
            f"is {labels[block.sample_starts[at]]}, want {IGNORED_LABEL}: nothing predicts it"
        ),
    )
    _refuse(
        is_learned & (block.ordinals == 0),
        lambda at: (
            f"{where}: {block.place(at)}: label {labels[at]} on what fills the row, want "
            f"{IGNORED_LABEL}"
        ),
    )
    if manifest.task in _LABELS_ARE_TOKENS:
        _refuse(
            is_learned & (labels != ids),
            lambda at: (
                f"{where}: {block.place(at)}: label {labels[at]}, want {IGNORED_LABEL} or "
                f"the token {ids[at]}"
            ),
        )
    vocab_size = manifest.tokenizer.vocab_size
    _refuse(
        is_learned & ((labels < 0) | (labels >= vocab_size)),
        lambda at: (
            f"{where}: {block.place(at)}: label {labels[at]}, want {IGNORED_LABEL} or 0 to "
            f"{vocab_size - 1}"
        ),
    )
    return int(np.count_nonzero(is_learned))


def _check_further(column: TokenDataset, check: _Check) -> None:
    """A column that belongs to no side: only its tokens can be wrong."""
    count = len(column.tokens)
    for first in range(0, count, _BLOCK_TOKENS):
        _check_ids(
            check.read(column, first, min(count, first + _BLOCK_TOKENS)),
            check.dataset.manifest,
            name=column.name,
            place=lambda at, first=first: f"entry {first + at}",
        )


def _check_ids(
    ids: NDArray[np.integer], manifest: SampleManifest, *, name: str, place: Callable[[int], str]
) -> None:
    vocab_size = manifest.tokenizer.vocab_size
    _refuse(
        (ids < 0) | (ids >= vocab_size),
        lambda at: f"{name}.bin: {place(at)}: token {ids[at]}, want 0 to {vocab_size - 1}",
    )


def _refuse(wrong: NDArray[np.bool_], says: Callable[[int], str]) -> None:
    """Raise FormatError about the first entry that is wrong."""
    if len(found := np.flatnonzero(wrong)):
        raise FormatError(says(int(found[0])))
