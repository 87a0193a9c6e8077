"""The data files of what Hugging Face's `save_to_disk` wrote, found without its library."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from llm_data.errors import DataError, UsageError, listed

DEFAULT_SPLIT = "train"

# What the library writes beside the data; none of it is a record.
METADATA_NAMES = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json"})

_DICT = "dataset_dict.json"
_STATE = "state.json"
_INFO = "dataset_info.json"


def is_saved_dataset(folder: Path) -> bool:
    """Whether the folder is a saved Dataset or DatasetDict."""
    return (folder / _DICT).is_file() or all((folder / name).is_file() for name in (_STATE, _INFO))


def saved_files(folder: Path, *, split: str | None) -> list[Path]:
    """The Arrow files of a saved dataset, in the order of its rows.

    A DatasetDict gives the split asked for, else `DEFAULT_SPLIT`.
    """
    if (folder / _DICT).is_file():
        splits = _strings(_object(folder / _DICT).get("splits"), where=folder / _DICT)
        wanted = split or DEFAULT_SPLIT
        if wanted not in splits:
            raise UsageError(
                f"{folder}: no split {wanted!r}; it has {listed(splits)}; --split chooses"
            )
        return _files(folder / wanted, _object(folder / wanted / _STATE))
    state = _object(folder / _STATE)
    there = state.get("_split")
    if split is not None and there != split:
        held = f"the split {there!r}" if there else "no named split"
        raise UsageError(f"{folder}: --split {split}: the dataset holds {held}")
    return _files(folder, state)


def _files(folder: Path, state: Mapping[str, object]) -> list[Path]:
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{folder}: saved by an old `datasets` with its rows in another order than its files; "
            "load_from_disk and save_to_disk of a current one write them in order"
        )
    return [_data_file(folder, entry) for entry in _list(state.get("_data_files"), folder / _STATE)]


def _data_file(folder: Path, entry: object) -> Path:
    name = cast("Mapping[str, object]", entry).get("filename") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise DataError(f"{folder / _STATE}: _data_files: found {entry!r}, want a 'filename'")
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path}: no such file, but {_STATE} beside it lists it")
    return path


def _object(path: Path) -> Mapping[str, object]:
    try:
        found: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: found {type(found).__name__}, want an object")
    return cast("Mapping[str, object]", found)


def _list(found: object, where: Path) -> list[object]:
    if not isinstance(found, list):
        raise DataError(f"{where}: found {found!r}, want a list")
    return cast("list[object]", found)


def _strings(found: object, *, where: Path) -> list[str]:
    return [str(each) for each in _list(found, where)]
