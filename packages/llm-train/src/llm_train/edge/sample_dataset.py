"""A sample dataset on disk, checked before a run starts.

Contract: tests/contracts/sample_dataset/SPEC.md.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llm_train.dataset import DatasetFacts, SampleFacts
from llm_train.edge.token_dataset import DataError, read_index

FORMAT, VERSION = "sample-dataset", 1
BOUNDARIES = "cu_seqlens"
_COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sft": ("input_ids", "attention_mask", "labels"),
        "pairwise": (
            "chosen_input_ids",
            "chosen_labels",
            "rejected_input_ids",
            "rejected_labels",
        ),
        "prompt": ("input_ids", "attention_mask"),
        "prm": ("input_ids", "labels", "attention_mask"),
    }
)
_LABELS = frozenset({"labels", "chosen_labels", "rejected_labels"})
_ITEM_BYTES: Mapping[str, int] = MappingProxyType({"uint16": 2, "int32": 4})

# Key → what it must be, in words; `None` in a tuple of types stands for null.
_KEYS: Mapping[str, tuple[type | None, ...]] = MappingProxyType(
    {
        "format": (str,),
        "version": (int,),
        "task": (str,),
        "columns": (list,),
        "num_rows": (int,),
        "num_samples": (int,),
        "num_tokens": (int,),
        "num_loss_tokens": (int,),
        "packed": (bool,),
        "seq_length": (int, None),
        "pad_id": (int, None),
        "template": (dict, None),
        "options": (dict,),
        "tokenizer": (dict,),
        "sources": (list,),
        "drops": (dict,),
        "notes": (dict,),
        "on_error": (str,),
        "files": (dict,),
        "created_by": (str,),
    }
)
_WORDS: Mapping[type | None, str] = MappingProxyType(
    {
        str: "a string",
        int: "a whole number",
        list: "a list",
        bool: "true or false",
        dict: "an object",
        None: "null",
    }
)


def manifest_path(prefix: Path) -> Path:
    """Where the manifest of a dataset lies."""
    return Path(f"{prefix}_packed.json")


def column_prefix(prefix: Path, column: str) -> Path:
    """What a column's `.bin` and `.idx` are named before their suffix."""
    ending = "" if column == BOUNDARIES else "_document"
    return Path(f"{prefix}_packed_{column}{ending}")


def read_sample_facts(prefix: Path, *, task: str = "sft") -> SampleFacts:
    """Check manifest and files of a dataset of `task`, and say what they hold.

    Raises DataError naming the file, what was found and what was wanted.
    """
    path = manifest_path(prefix)
    manifest = read_manifest(prefix)
    names = _check_columns(manifest, path)
    _check_packing(manifest, path)
    _check_files(manifest, names, prefix)
    if manifest["task"] != task:
        raise DataError(f"{path}: its task is {manifest['task']}, want {task}")
    if not manifest["num_rows"]:
        raise DataError(f"{path}: holds no rows")
    tokenizer, template = manifest["tokenizer"], manifest["template"] or {}
    return SampleFacts(
        dataset=DatasetFacts(
            sequences=manifest["num_rows"],
            tokens=manifest["num_tokens"],
            tokenizer_digest=tokenizer.get("digest"),
            vocab_size=tokenizer.get("vocab_size"),
            eos_id=tokenizer.get("eos_id"),
        ),
        samples=manifest["num_samples"],
        is_packed=manifest["packed"],
        seq_length=manifest["seq_length"],
        template=template.get("name"),
        template_digest=template.get("digest"),
    )


def read_manifest(prefix: Path) -> dict[str, Any]:
    """The manifest, every key there and of its type. Raises DataError."""
    path = manifest_path(prefix)
    if not path.is_file():
        found = sorted(one.name.removesuffix("_packed.json") for one in _manifests(prefix.parent))
        there = f"; datasets in {prefix.parent}: {', '.join(found[:5])}" if found else ""
        raise DataError(
            f"{path}: no such file{there}; want a sample dataset (llm-data preprocess --task sft)"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: not the manifest of a sample dataset, want {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise DataError(f"{path}: version {manifest.get('version')}, want {VERSION}")
    _check_keys(manifest, path)
    return manifest


def _manifests(folder: Path) -> Iterator[Path]:
    return folder.glob("*_packed.json")


def _check_keys(manifest: Mapping[str, Any], path: Path) -> None:
    for key in manifest:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{path}: unknown key {key!r}{hint}")
    for key, wanted in _KEYS.items():
        if key not in manifest:
            raise DataError(f"{path}: no key {key!r}")
        _check_type(manifest[key], wanted, f"{path}: {key}")
    template = manifest["template"]
    if template is not None:
        for key in ("name", "digest"):
            _check_type(template.get(key), (str,), f"{path}: template.{key}")


def _check_type(value: object, wanted: Sequence[type | None], where: str) -> None:
    kinds = [type(None) if one is None else one for one in wanted]
    # bool is an int to Python, not to JSON.
    if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
        raise DataError(f"{where}: {value!r}, want {' or '.join(_WORDS[one] for one in wanted)}")
    if type(value) is int and value < 0:
        raise DataError(f"{where}: {value}, want at least 0")


def _check_columns(manifest: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The type of every column."""
    task = manifest["task"]
    if task not in _COLUMNS:
        raise DataError(f"{path}: task: {task!r}, want one of {', '.join(_COLUMNS)}")
    columns = manifest["columns"]
    for one in columns:
        if not isinstance(one, dict) or set(one) != {"name", "dtype"}:
            raise DataError(f"{path}: columns: {one!r}, want an object of name and dtype")
        if not isinstance(one["name"], str) or not one["name"] or "/" in one["name"]:
            raise DataError(f"{path}: columns: {one['name']!r}, want a name without '/'")
    names = [one["name"] for one in columns]
    wanted, further = list(_COLUMNS[task]), names[len(_COLUMNS[task]) :]
    if names[: len(wanted)] != wanted or (further and task != "prompt"):
        found = ", ".join(names)
        raise DataError(f"{path}: columns are {found}, want {', '.join(wanted)}")
    if further != sorted(set(further)):
        raise DataError(
            f"{path}: further columns are {', '.join(further)}, want distinct names, sorted"
        )
    for one in columns:
        choices = ("int32",) if one["name"] in _LABELS else tuple(_ITEM_BYTES)
        if one["dtype"] not in choices:
            raise DataError(f"{path}: {one['name']} is {one['dtype']}, want {' or '.join(choices)}")
    return {one["name"]: one["dtype"] for one in columns}


def _check_packing(manifest: Mapping[str, Any], path: Path) -> None:
    is_packed, task = manifest["packed"], manifest["task"]
    if is_packed and task != "sft":
        raise DataError(f"{path}: packed is true, but the task is {task}, want sft")
    if is_packed and not manifest["seq_length"]:
        raise DataError(f"{path}: seq_length is null, want the length of its packed rows")
    if is_packed and manifest["pad_id"] is None:
        raise DataError(f"{path}: pad_id is null, want what fills its packed rows")
    if not is_packed and manifest["pad_id"] is not None:
        raise DataError(f"{path}: pad_id is {manifest['pad_id']}, want null: rows are not packed")
    samples, rows = manifest["num_samples"], manifest["num_rows"]
    if samples < rows or (samples > rows and not is_packed):
        wanted = "at least as many" if is_packed else "as many"
        raise DataError(f"{path}: {samples} samples in {rows} rows, want {wanted}")


def _check_files(manifest: Mapping[str, Any], columns: Mapping[str, str], prefix: Path) -> None:
    path, files = manifest_path(prefix), manifest["files"]
    pairs = {**columns, **({BOUNDARIES: "int32"} if manifest["packed"] else {})}
    wanted = {f"{name}.{kind}" for name in pairs for kind in ("bin", "idx")}
    if wanted != files.keys():
        lost, unknown = sorted(wanted - files.keys()), sorted(files.keys() - wanted)
        parts = [
            f"{word} {', '.join(some)}"
            for word, some in (("missing", lost), ("unknown", unknown))
            if some
        ]
        raise DataError(f"{path}: files: {'; '.join(parts)}")
    for name, dtype in pairs.items():
        pair = column_prefix(prefix, name)
        for kind in ("bin", "idx"):
            file, entry = Path(f"{pair}.{kind}"), files[f"{name}.{kind}"]
            if not file.is_file():
                raise DataError(f"{file}: the file is missing; {path.name} names it")
            found, size = file.stat().st_size, entry.get("bytes")
            if found != size:
                raise DataError(f"{file}: found {found} bytes, {path.name} wants {size}")
        index = Path(f"{pair}.idx")
        sequences, documents, item = read_index(index)
        rows = manifest["num_rows"]
        for count, word in ((sequences, "sequences"), (documents - 1, "documents")):
            if count != rows:
                raise DataError(f"{index}: {count} {word}, the manifest wants {rows}")
        if item != dtype:
            raise DataError(f"{index}: dtype {item}, the manifest wants {dtype}")
