"""Everything a run decides before it reads its first record."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from llm_data.config import PreprocessConfig, RunIdentity, Task
from llm_data.edge.datasets.dataset_manifests import DatasetManifest, identity_of
from llm_data.edge.durable import with_suffix
from llm_data.edge.runs.run_folder import Layout, Pair
from llm_data.edge.sources.inputs import Inputs, find_inputs
from llm_data.encode import Column, EncoderSpec
from llm_data.formats.sample_manifest import BOUNDARIES, pair_endings

# Below this much input a further process costs more than it brings.
BYTES_PER_WORKER = 4 << 20

# Columns whose content packing makes anew, and where the samples wait until then.
_SAMPLE_SPOOL = "sample-"
_PACKED_FROM = ("input_ids", "labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a packed row is: so many tokens, filled up with `pad_id`."""

    length: int
    pad_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run before its first record. `draft` is its manifest with every count still 0.

    `read_key` is the column that readers take, None for whole records. `row` is given if samples
    are packed.
    """

    config: PreprocessConfig
    inputs: Inputs
    draft: DatasetManifest
    spec: EncoderSpec
    read_key: str | None
    row: Row | None = None

    @property
    def identity(self) -> RunIdentity:
        """What decides the bytes."""
        return identity_of(self.draft)

    @property
    def unit(self) -> str:
        """What one record gives, in messages."""
        return "documents" if self.config.task is Task.PRETRAIN else "samples"

    @property
    def source_columns(self) -> Sequence[str]:
        """The encoder's columns that go to spools."""
        names = [column.name for column in self.spec.columns]
        return names if self.row is None else [name for name in names if name in _PACKED_FROM]

    @property
    def spooled(self) -> Sequence[Column]:
        """The columns that records become."""
        if self.row is None:
            return self.spec.columns
        return [
            Column(name=f"{_SAMPLE_SPOOL}{column.name}", dtype=column.dtype)
            for column in self.spec.columns
            if column.name in _PACKED_FROM
        ]

    @property
    def published(self) -> Sequence[Column]:
        """The columns that the dataset has."""
        if self.row is None:
            return self.spec.columns
        return (*self.spec.columns, Column(name=BOUNDARIES, dtype="int32"))

    @property
    def layout(self) -> Layout:
        """Where the files go."""
        return layout_of(self.config, [column.name for column in self.spec.columns])


def layout_of(config: PreprocessConfig, columns: Sequence[str]) -> Layout:
    """Where the files of a run go whose encoder gives these columns."""
    if config.task is Task.PRETRAIN:
        return Layout(stem=config.stem, pairs=(Pair(columns[0], "", config.stem),))
    endings = pair_endings(columns, packed=config.pack)
    pairs = (
        Pair(name, f"{name}.", with_suffix(config.output, ending))
        for name, ending in endings.items()
    )
    return Layout(stem=config.stem, pairs=tuple(pairs))


def inputs_of(config: PreprocessConfig) -> Inputs:
    """The files a run reads."""
    return find_inputs(
        config.inputs,
        patterns=config.patterns,
        output_stem=config.stem,
        split=config.split,
        datasets_params=config.datasets_params,
    )


def worker_count(config: PreprocessConfig, inputs: Inputs) -> int:
    """As many processes as asked for, else what the machine has and the input is worth."""
    if config.workers is not None:
        return config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, inputs.bytes // BYTES_PER_WORKER))
