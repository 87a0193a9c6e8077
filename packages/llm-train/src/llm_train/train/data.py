"""Token datasets as micro-batches: megatron-core's GPTDataset under one global sample order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from torch.utils.data import DataLoader, Dataset

from llm_train.batches import Batch, BatchSizes
from llm_train.config import DataConfig, TrainConfig
from llm_train.dataset import DatasetFacts
from llm_train.train.documents import DocumentRows

_BATCH_KEYS = ("tokens", "labels", "position_ids", "loss_mask")
# Of sequences that end before their row does.
_PADDING = "padding"

Samples = Dataset[dict[str, torch.Tensor]]


class _VocabularyFacts:
    """What GPTDataset asks of a tokenizer: the dataset is already tokens."""

    def __init__(self, *, vocab_size: int, eod: int | None) -> None:
        self.vocab_size = vocab_size
        # Only megatron-core's own masks look at it, and those are off (DocumentRows makes ours);
        # without one, an id that no dataset holds.
        self.eod = vocab_size if eod is None else eod
        self.unique_identifiers = {"vocab_size": str(vocab_size), "eod": str(self.eod)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Samples of `seq_length` tokens and their labels."""

    train: Samples
    valid: Samples | None


def build_splits(
    data: DataConfig,
    train: TrainConfig,
    *,
    facts: Sequence[DatasetFacts],
    vocab_size: int,
    cache_dir: Path,
) -> Splits:
    """Every rank calls this; rank 0 builds the sample indices under `cache_dir`.

    The order of samples follows from the seed, the data and the number of samples, never from
    the number of ranks.
    """
    train_samples = BatchSizes.of(train).consumed(train.max_steps)
    valid_samples = train.eval_steps * train.global_batch_size if train.eval_every else 0
    # In proportion to their tokens unless told otherwise, and for as many epochs as it takes.
    weights = list(data.weights or [float(one.tokens) for one in facts])
    blend = ([str(path) for path in data.train], weights if len(data.train) > 1 else None)
    valid_blend = ([str(path) for path in data.valid], None) if data.valid else None
    use_fraction = data.valid_fraction > 0 and not data.valid
    config = GPTDatasetConfig(
        random_seed=train.seed,
        sequence_length=train.seq_length,
        blend=blend if use_fraction else None,
        split=f"{1 - data.valid_fraction},{data.valid_fraction},0" if use_fraction else None,
        blend_per_split=None if use_fraction else [blend, valid_blend, None],
        path_to_cache=str(cache_dir),
        tokenizer=_VocabularyFacts(vocab_size=vocab_size, eod=facts[0].eos_id),  # pyright: ignore[reportArgumentType]  # by shape
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    sizes = [train_samples, valid_samples or None, None]
    kind = DocumentRows if data.reset_documents else GPTDataset
    built = BlendedMegatronDatasetBuilder(kind, sizes, lambda: True, config).build()
    return Splits(train=built[0], valid=built[1] if valid_samples else None)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """Sample indices of one data-parallel rank, a list a micro-batch.

    A step takes the next samples of the global order (batches.py), cut so that every number of
    ranks sees the same samples in a step.
    """

    first_step: int
    last_step: int
    sizes: BatchSizes
    micro_batch_size: int
    dp_rank: int
    dp_size: int

    def __len__(self) -> int:
        samples = self.sizes.consumed(self.last_step) - self.sizes.consumed(self.first_step)
        return samples // (self.micro_batch_size * self.dp_size)

    def __iter__(self) -> Iterator[list[int]]:
        for _, micro_batches in self.by_step():
            yield from micro_batches

    def by_step(self) -> Iterator[tuple[Batch, list[list[int]]]]:
        """Every step's samples over all ranks, and this rank's micro-batches of them."""
        stride = self.micro_batch_size * self.dp_size
        for batch in self.sizes.steps(self.first_step, self.last_step):
            start = batch.first + self.dp_rank * self.micro_batch_size
            yield (
                batch,
                [
                    list(range(first, first + self.micro_batch_size))
                    for first in range(start, batch.first + batch.size, stride)
                ],
            )


def iterate(
    dataset: Samples, indices: Iterable[list[Any]], *, num_workers: int = 0
) -> Iterator[dict[str, torch.Tensor]]:
    """Micro-batches of tokens, labels, position_ids [B, T] int64 and loss_mask [B, T] fp32.

    Of padded sequences also padding [B, T], true behind their end.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=indices,  # pyright: ignore[reportArgumentType]  # a sampler by shape
        num_workers=num_workers,
        collate_fn=_stack,
        generator=torch.Generator(),  # leave the global one to the model
    )
    return iter(loader)


def _stack(samples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    # A blend adds the number of the dataset, which nothing here asks for.
    keys = (*_BATCH_KEYS, *((_PADDING,) if _PADDING in samples[0] else ()))
    return {key: torch.stack([sample[key] for sample in samples]) for key in keys}
