"""Sample datasets as sequences: every row as far as it goes, padded to what its micro-batch needs.

R rows, T tokens of one sequence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from torch.utils.data import Dataset

from llm_train.config import RunConfig, TooLong, Unlearned
from llm_train.dataset import SampleFacts
from llm_train.sample_order import (
    IGNORED_LABEL,
    BlendedOrder,
    Order,
    Padding,
    SampleOrder,
    Share,
    positions,
)
from llm_train.train.data import MicroBatches, Splits

_SHOWN = 5
# One to train on and one to evaluate on.
_SPLIT_ROWS = 2

Sequenced = dict[str, torch.Tensor]


class SampleError(ValueError):
    """Samples that a run cannot train on as it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The prefixes of one dataset's columns; `boundaries` of packed rows alone."""

    name: str
    input_ids: Path
    labels: Path
    boundaries: Path | None


class SampleRows(Dataset[Sequenced]):
    """Rows of sample datasets in the order of a run; its items are (place in the order, length).

    `weights` draw from the datasets in proportion. `left_out` tells why rows were left out, and
    how many.
    """

    def __init__(
        self,
        files: Sequence[Files],
        facts: Sequence[SampleFacts],
        config: RunConfig,
        *,
        share: Share = Share.ALL,
        weights: Sequence[float] | None = None,
    ) -> None:
        self._seq_length = config.train.seq_length
        self._parts = [_Part(one, fact) for one, fact in zip(files, facts, strict=True)]
        counts: dict[str, int] = {}
        kept = [part.kept(config, counts, share) for part in self._parts]
        self._part_of = np.concatenate([np.full(len(r), n) for n, r in enumerate(kept)])
        self._row_of = np.concatenate(kept)
        self.left_out = counts
        if not len(self._row_of):
            names = ", ".join(part.files.name for part in self._parts)
            raise SampleError(f"{names}: no sample is left to train on ({self.told})")
        lengths = np.concatenate(
            [part.lengths[rows] for part, rows in zip(self._parts, kept, strict=True)]
        )
        self.lengths: np.ndarray = np.minimum(lengths, self._seq_length)
        self._learned: np.ndarray = np.concatenate(
            [part.learned[rows] for part, rows in zip(self._parts, kept, strict=True)]
        )
        self.order: Order = self._ordered(config, list(map(len, kept)), weights)
        self._padding = padding_of(config)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: tuple[int, int] | int) -> Sequenced:
        """Tokens, labels, position_ids, padding [T] and loss_mask [T] fp32 of one sequence."""
        place, length = item if isinstance(item, tuple) else (item, None)
        row = self.order.row(place)
        return self._parts[self._part_of[row]].sequence(
            int(self._row_of[row]),
            count=int(self.lengths[row]),
            length=length or int(self.lengths[row]),
        )

    def tokens(self, first: int, stop: int) -> int:
        """Tokens of the sequences at places `first` to `stop`, without padding."""
        return self.order.total(self.lengths, stop) - self.order.total(self.lengths, first)

    def learned(self, first: int, stop: int) -> int:
        """Learned tokens of the sequences at places `first` to `stop`."""
        return self.order.total(self._learned, stop) - self.order.total(self._learned, first)

    def origin(self, place: int) -> str:
        """Where the sequence at a place comes from."""
        row = self.order.row(place)
        return f"row {self._row_of[row]} of {self._parts[self._part_of[row]].files.name}"

    def padded(self, micro_batches: MicroBatches) -> "PaddedBatches":
        """The same micro-batches, each sequence with the length that it is padded to."""
        return PaddedBatches(micro_batches, self, self._padding)

    @property
    def told(self) -> str:
        """What was left out or shortened, in words."""
        parts = (f"{count} {reason}" for reason, count in self.left_out.items())
        return ", ".join(parts) or "none left out"

    def length(self, place: int) -> int:
        """Tokens of the sequence at a place."""
        return int(self.lengths[self.order.row(place)])

    def blend(self, samples: int) -> Sequence[str]:
        """Of a run of so many samples, how often each dataset is gone through, in words."""
        if not isinstance(self.order, BlendedOrder):
            return ()
        rows = np.bincount(self._part_of, minlength=len(self._parts))
        return [
            f"{part.files.name}: {share:.4g} of all samples, {drawn} of them, its {count} "
            f"sequences {drawn / count:.2f} times"
            for part, share, drawn, count in zip(
                self._parts, self.order.shares, self.order.drawn(samples), rows, strict=True
            )
        ]

    def _ordered(
        self, config: RunConfig, rows: Sequence[int], weights: Sequence[float] | None
    ) -> Order:
        seed, is_shuffled = config.train.seed, config.sft.shuffle
        if weights is None:
            return SampleOrder(sum(rows), seed, is_shuffled)
        for part, count in zip(self._parts, rows, strict=True):
            if not count:
                raise SampleError(
                    f"{part.files.name}: no sample is left to train on ({self.told}), and "
                    "data.weights draws from it; want it and its weight left out"
                )
        return BlendedOrder(rows, weights, seed=seed, is_shuffled=is_shuffled)


class PaddedBatches:
    """Micro-batches as lists of (place, padded length)."""

    def __init__(self, micro_batches: MicroBatches, rows: SampleRows, padding: Padding) -> None:
        self._micro_batches, self._rows, self._padding = micro_batches, rows, padding

    def __len__(self) -> int:
        return len(self._micro_batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch, micro_batches in self._micro_batches.by_step():
            step = range(batch.first, batch.first + batch.size)
            for places in micro_batches:
                alike = step if self._padding.is_by_step else places
                length = self._padding.padded([self._rows.length(place) for place in alike])
                yield [(place, length) for place in places]


def build_sample_splits(
    config: RunConfig, files: Sequence[Files], facts: Sequence[SampleFacts]
) -> Splits:
    """The sequences of `data.train`, then those of `data.valid`, in the order of `files`.

    With `data.valid_fraction` the latter are rows of the former that are held out. Raises
    SampleError where samples are such that the config says stop.
    """
    count, data = len(config.data.train), config.data
    is_split = data.valid_fraction > 0
    train = SampleRows(
        files[:count],
        facts[:count],
        config,
        share=Share.REST if is_split else Share.ALL,
        weights=data.weights,
    )
    if config.train.eval_every is None or not (is_split or len(files) > count):
        return Splits(train=train, valid=None)
    if is_split:
        valid = SampleRows(files, facts, config, share=Share.HELD_OUT)
    else:
        valid = SampleRows(files[count:], facts[count:], config)
    return Splits(train=train, valid=valid)


def padding_of(config: RunConfig) -> Padding:
    """Lengths that every rank's share of a sequence allows for."""
    parallel = config.parallel
    unit = (2 * parallel.cp if parallel.cp > 1 else 1) * (
        parallel.tp if parallel.sequence_parallel else 1
    )
    return Padding(
        multiple=unit * -(-config.sft.pad_to // unit),
        seq_length=config.train.seq_length,
        is_by_step=parallel.pp > 1 or parallel.ep > 1,
    )


class _Part:
    """One dataset."""

    def __init__(self, files: Files, facts: SampleFacts) -> None:
        self.files = files
        self._facts = facts
        self._ids = IndexedDataset(str(files.input_ids))
        self._labels = IndexedDataset(str(files.labels))
        self._boundaries = (
            None if files.boundaries is None else IndexedDataset(str(files.boundaries))
        )
        rows = self._ids.sequence_lengths.astype(np.int64)
        if self._boundaries is not None:
            # The last boundary is where a row's padding begins.
            ends = [int(_row(self._boundaries, row)[-1]) for row in range(len(rows))]
            rows = np.array(ends, dtype=np.int64)
        self.lengths: np.ndarray = rows
        self.learned: np.ndarray = np.zeros_like(rows)

    def kept(self, config: RunConfig, counts: dict[str, int], share: Share) -> np.ndarray:
        """Numbers of the rows of `share` to train on; what of them is left out is counted."""
        sft, limit = config.sft, config.train.seq_length
        chosen = self._chosen(share, config.data.valid_fraction)
        is_long = (self.lengths > limit) & chosen
        if is_long.any() and sft.too_long is TooLong.STOP:
            raise SampleError(
                f"{self.files.name}: {is_long.sum()} of {len(is_long)} samples are longer than "
                f"train.seq_length({limit}), the longest has {self.lengths.max()} tokens (rows "
                f"{_first(is_long)}); want sft.too_long=drop or truncate, or a longer "
                "train.seq_length"
            )
        if sft.too_long is TooLong.DROP:
            _count(counts, "longer than train.seq_length", is_long)
            keep = chosen & ~is_long
        else:
            _count(counts, "truncated", is_long)
            keep = chosen
        self.learned = self._count_learned(limit)
        is_idle = (self.learned == 0) & keep
        if is_idle.any() and sft.unlearned is Unlearned.STOP:
            raise SampleError(
                f"{self.files.name}: in {is_idle.sum()} of {len(is_idle)} samples no token is "
                f"learned (rows {_first(is_idle)}); want labels in every sample, or "
                "sft.unlearned=drop"
            )
        _count(counts, "without a learned token", is_idle)
        return np.flatnonzero(keep & ~is_idle)

    def _chosen(self, share: Share, fraction: float) -> np.ndarray:
        if share is not Share.ALL and len(self.lengths) < _SPLIT_ROWS:
            raise SampleError(
                f"{self.files.name}: data.valid_fraction({fraction}) of its one row leaves none to "
                "train on; want data.valid"
            )
        return share.chosen(len(self.lengths), fraction)

    def sequence(self, row: int, *, count: int, length: int) -> Sequenced:
        """The first `count` tokens of a row, padded to `length`.

        Labels are those of the next token; padding is a document of its own where rows are packed.
        """
        tokens = torch.zeros(length, dtype=torch.int64)
        labels = torch.full((length + 1,), IGNORED_LABEL, dtype=torch.int64)
        ids, learned = (
            _row(column, row)[:count].astype(np.int64) for column in (self._ids, self._labels)
        )
        self._refuse_unknown(row, ids, learned)
        tokens[:count], labels[:count] = torch.from_numpy(ids), torch.from_numpy(learned)
        is_learned = labels[1:] != IGNORED_LABEL
        places = torch.arange(length)
        return {
            "tokens": tokens,
            "labels": torch.where(is_learned, labels[1:], 0),
            "position_ids": places if self._boundaries is None else self._positions(row, length),
            "loss_mask": is_learned.float(),
            "padding": places >= count,
        }

    def _refuse_unknown(self, row: int, ids: np.ndarray, labels: np.ndarray) -> None:
        """Ids without a row in a table that ranks share give embeddings and losses all the same."""
        where, vocabulary = f"row {row} of {self.files.name}", self._facts.dataset.vocab_size
        if vocabulary is not None and (is_bad := (ids < 0) | (ids >= vocabulary)).any():
            raise SampleError(
                f"{where}: token {ids[is_bad][0]} at {np.flatnonzero(is_bad)[0]}, its tokenizer "
                f"has {vocabulary}; want the dataset made again (llm-data preprocess)"
            )
        if (is_bad := (labels != IGNORED_LABEL) & (labels != ids)).any():
            raise SampleError(
                f"{where}: label {labels[is_bad][0]} of token {ids[is_bad][0]} at "
                f"{np.flatnonzero(is_bad)[0]}; want {IGNORED_LABEL} or the token"
            )

    def _positions(self, row: int, length: int) -> torch.Tensor:
        """Places in their own sample [T]; the boundaries are the dataset's, never a token's."""
        assert self._boundaries is not None
        starts = [int(start) for start in _row(self._boundaries, row) if start < length]
        return torch.cat([torch.arange(stop - start) for start, stop in positions(length, starts)])

    def _count_learned(self, limit: int) -> np.ndarray:
        """How many tokens of each row's first `limit` are learned; the first is not [R]."""
        rows = range(len(self.lengths))
        counted = (
            np.count_nonzero(_row(self._labels, row)[1:limit] != IGNORED_LABEL) for row in rows
        )
        return np.fromiter(counted, dtype=np.int64, count=len(rows))


def _count(counts: dict[str, int], reason: str, is_so: np.ndarray) -> None:
    if is_so.any():
        counts[reason] = counts.get(reason, 0) + int(is_so.sum())


def _first(is_so: np.ndarray) -> str:
    rows = np.flatnonzero(is_so)
    shown = ", ".join(map(str, rows[:_SHOWN]))
    return shown + (", …" if len(rows) > _SHOWN else "")


def _row(dataset: IndexedDataset, number: int) -> np.ndarray:
    return cast("np.ndarray", dataset[number])
