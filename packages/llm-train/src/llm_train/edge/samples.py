"""The sample datasets of a run, opened once they are checked."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llm_train.arch import Arch
from llm_train.batches import BatchSizes
from llm_train.config import RunConfig
from llm_train.edge.inputs import one_template, read_samples
from llm_train.edge.sample_dataset import BOUNDARIES, column_prefix
from llm_train.interfaces import WeightSource

if TYPE_CHECKING:
    from llm_train.train.data import Splits
    from llm_train.train.samples import Files


def open_samples(
    config: RunConfig, arch: Arch, *, source: WeightSource | None, say: Callable[[str], None]
) -> "Splits":
    """The samples to train on and to evaluate on; says how many, and what was left out.

    Needs megatron-core to be ready. Raises DataError and SampleError.
    """
    from llm_train.train.samples import SampleRows, build_sample_splits

    facts = read_samples(config.data, config.train, arch)
    one_template(config.data, facts, source)
    prefixes = (*config.data.train, *config.data.valid)
    files = [
        _files(prefix, is_packed=one.is_packed) for prefix, one in zip(prefixes, facts, strict=True)
    ]
    splits = build_sample_splits(config, files, facts)
    for name, rows in (("data.train", splits.train), ("data.valid", splits.valid)):
        if isinstance(rows, SampleRows):
            say(f"{name}: {len(rows)} sequences, {rows.lengths.sum()} tokens ({rows.told})")
            for line in rows.blend(BatchSizes.of(config.train).consumed(config.train.max_steps)):
                say(f"data.weights: {line}")
    return splits


def _files(prefix: Path, *, is_packed: bool) -> "Files":
    from llm_train.train.samples import Files

    return Files(
        name=str(prefix),
        input_ids=column_prefix(prefix, "input_ids"),
        labels=column_prefix(prefix, "labels"),
        boundaries=column_prefix(prefix, BOUNDARIES) if is_packed else None,
    )
