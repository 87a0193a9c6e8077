"""A token dataset as arrays: an index over one flat array of tokens, with its manifest."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_data.errors import FormatError
from llm_data.formats.indexed import Index, check_tables
from llm_data.formats.manifest import Manifest

_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDataset:
    """Documents of sequences of tokens, without copies.

    `tokens` is flat, of the index's dtype; `manifest` is None for a pair other tools wrote.
    """

    name: str
    index: Index
    tokens: NDArray[np.integer]
    manifest: Manifest | None

    def __len__(self) -> int:
        """The number of documents."""
        return self.index.num_documents

    def sequence(self, number: int) -> NDArray[np.integer]:
        """A view of sequence `number`."""
        size = self.index.dtype.itemsize
        start = (
            int(self.index.pointers[_checked(number, self.index.num_sequences, "sequence")]) // size
        )
        return self.tokens[start : start + int(self.index.lengths[number])]

    def document(self, number: int) -> NDArray[np.integer]:
        """A view of all tokens of document `number`: its sequences lie end to end."""
        _checked(number, self.index.num_documents, "document")
        first, last = (int(edge) for edge in self.index.documents[number : number + 2])
        if first == last:
            return self.tokens[:0]
        size = self.index.dtype.itemsize
        start = int(self.index.pointers[first]) // size
        end = int(self.index.pointers[last - 1]) // size + int(self.index.lengths[last - 1])
        return self.tokens[start:end]

    def document_lengths(self) -> NDArray[np.int64]:
        """Tokens in each document, int64 [D]."""
        ends = np.concatenate(([0], np.cumsum(self.index.lengths, dtype=np.int64)))
        return np.diff(ends[self.index.documents])


def check_dataset(dataset: TokenDataset) -> None:
    """Refuse tables that contradict themselves, the manifest, or tokens outside the vocabulary."""
    check_tables(dataset.index, where=f"{dataset.name}.idx")
    if dataset.manifest is not None:
        _check_counts(dataset, dataset.manifest)
        _check_vocabulary(dataset, dataset.manifest)


def _checked(number: int, count: int, what: str) -> int:
    if not 0 <= number < count:
        raise IndexError(f"{what} {number}: the dataset has {count}, 0 to {count - 1}")
    return number


def _check_counts(dataset: TokenDataset, manifest: Manifest) -> None:
    index = dataset.index
    for name, said, found in (
        ("dtype", manifest.dtype, index.dtype.name),
        ("num_documents", manifest.num_documents, index.num_documents),
        ("num_sequences", manifest.num_sequences, index.num_sequences),
        ("num_tokens", manifest.num_tokens, index.num_tokens),
    ):
        if said != found:
            raise FormatError(f"{dataset.name}.json: {name} {said}, but the index has {found}")


def _check_vocabulary(dataset: TokenDataset, manifest: Manifest) -> None:
    vocab_size = manifest.tokenizer.vocab_size
    for first in range(0, len(dataset.tokens), _BLOCK):
        block = dataset.tokens[first : first + _BLOCK]
        bad = np.flatnonzero((block < 0) | (block >= vocab_size))
        if len(bad):
            at = int(bad[0])
            raise FormatError(
                f"{dataset.name}.bin: token {first + at} is {block[at]}, want 0 to {vocab_size - 1}"
            )
