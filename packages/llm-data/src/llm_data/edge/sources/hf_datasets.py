"""Datasets of the Hugging Face hub, by name: their Arrow files in its library's cache.

The library downloads and converts; the files it leaves are then read like any other. It looks
into its cache when there is no network.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from llm_data.edge.sources.saved_datasets import DEFAULT_SPLIT
from llm_data.errors import DataError, UsageError

if TYPE_CHECKING:
    from datasets import Dataset

INSTALL = "pip install 'llm-data[datasets]'"

_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")
# With arguments for load_dataset it may be one of its own builders: parquet, json, …
_ANY_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")
_SPLIT = re.compile(r"\w+(\.\w+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """The files of one split in the order of its rows; the fingerprint is the library's."""

    files: Sequence[Path]
    fingerprint: str


def is_dataset_name(argument: str, *, params: Mapping[str, object]) -> bool:
    """Whether `argument` could name a dataset: org/name or org/name:config."""
    return (_ANY_NAME if params else _NAME).fullmatch(argument) is not None


def load_hub_dataset(
    argument: str, *, split: str | None, params: Mapping[str, object]
) -> HubDataset:
    """The files of a dataset named org/name or org/name:config; downloads what is not cached.

    `params` are further arguments of `datasets.load_dataset`, such as data_files or revision.
    """
    if find_spec("datasets") is None:
        raise UsageError(
            f"{argument}: no such file or folder, and no `datasets` to look for a dataset of that "
            f"name: {INSTALL}"
        )
    arguments = _arguments(argument, split, params)
    dataset = _loaded(argument, arguments)
    files = [Path(entry["filename"]) for entry in dataset.cache_files]
    if getattr(dataset, "_indices", None) is not None or _num_rows(files) != dataset.num_rows:
        raise DataError(
            f"{argument}: its {dataset.num_rows} rows are not those of its {len(files)} files; "
            "save_to_disk writes them in order"
        )
    return HubDataset(files=files, fingerprint=str(getattr(dataset, "_fingerprint", "")))


def _arguments(
    argument: str, split: str | None, params: Mapping[str, object]
) -> Mapping[str, object]:
    match = _ANY_NAME.fullmatch(argument)
    assert match
    own = {"path": match["name"], "name": match["config"], "split": split}
    for option, value in own.items():
        if value is not None and params.get(option, value) != value:
            raise UsageError(
                f"{argument}: {option} is {value!r} here and {params[option]!r} in "
                "--datasets-params: want one"
            )
    if params.get("streaming"):
        raise UsageError("--datasets-params: 'streaming' is not for us: every input is streamed")
    given = {option: value for option, value in own.items() if value is not None}
    every = {"split": DEFAULT_SPLIT, **params, **given, "keep_in_memory": False}
    if not isinstance(every["split"], str) or not _SPLIT.fullmatch(every["split"]):
        raise UsageError(
            f"--split {every['split']}: want the name of one split; `llm-data split` and "
            "`llm-data merge` cut and join datasets that are made"
        )
    return every


def _loaded(argument: str, arguments: Mapping[str, object]) -> "Dataset":
    import datasets
    from datasets.exceptions import DatasetsError

    load = cast("Callable[..., Dataset]", datasets.load_dataset)
    try:
        return load(**arguments)
    except (OSError, ValueError, TypeError, RuntimeError, DatasetsError) as error:
        said = " ".join(str(error).split())
        raise DataError(
            f"{argument}: no such file or folder, and as a Hugging Face dataset: "
            f"{type(error).__name__}: {said} (without network only what HF_HOME's cache holds "
            "can be read)"
        ) from error


def _num_rows(files: Sequence[Path]) -> int:
    import pyarrow as pa
    from pyarrow import ipc

    rows = 0
    for file in files:
        # Mapped, so that only the headers of the batches are touched.
        with pa.memory_map(str(file)) as mapped, ipc.open_stream(mapped) as reader:
            rows += sum(batch.num_rows for batch in reader)
    return rows
