"""Hugging Face folders: safetensors, one file or sharded with an index."""

import json
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch

from llm_ckpt.errors import FormatError, first_few
from llm_ckpt.formats.slab import Slab, check_length
from llm_ckpt.layout import Shape

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_MAX_HEADER_BYTES = 100 << 20  # the limit of the safetensors library

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
    }
)
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_folder(folder: Path) -> dict[str, Slab]:
    """Every tensor of a folder, by name; nothing but headers is read."""
    files = _weight_files(folder)
    tensors: dict[str, Slab] = {}
    for path, names in files.items():
        found = read_header(path)
        if twice := sorted(tensors.keys() & found.keys()):
            raise FormatError(f"{path}: {first_few(twice)} are also in another file of {folder}")
        if names is not None and names != found.keys():
            wrong = sorted(names ^ found.keys())
            raise FormatError(
                f"{path}: {len(wrong)} tensors differ from {INDEX}: {first_few(wrong)}"
            )
        tensors.update(found)
    return tensors


def read_header(path: Path) -> dict[str, Slab]:
    """Tensors of one safetensors file; refuses truncation and overlap."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise FormatError(
                f"{path}: {size} bytes, want a safetensors header of {length} bytes (truncated?)"
            )
        try:
            header = cast("dict[str, Any]", json.loads(file.read(length)))
        except ValueError as error:
            raise FormatError(f"{path}: safetensors header is not JSON: {error}") from None
    header.pop("__metadata__", None)
    tensors = {name: _slab(path, 8 + length, name, entry) for name, entry in header.items()}
    check_length(list(tensors.values()))
    end = 8 + length
    for slab in sorted(tensors.values(), key=lambda slab: slab.offset):
        if slab.offset != end:
            raise FormatError(f"{path}: data at byte {slab.offset}, want {end} (gap or overlap)")
        end += slab.nbytes
    if end != size:
        raise FormatError(f"{path}: {size} bytes, want {end}")
    return tensors


def header_bytes(tensors: Sequence[tuple[str, torch.dtype, Shape]]) -> bytes:
    """The header of a file that holds these tensors in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shard_name(index: int, count: int) -> str:
    """File name of shard `index` of `count`, as transformers names it."""
    return SINGLE if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def index_bytes(weight_map: Mapping[str, str], total_bytes: int) -> bytes:
    """The text of the index of a sharded folder."""
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(index, indent=2) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise FormatError(f"{path}: found {type(document).__name__}, want a JSON object")
    return cast("dict[str, Any]", document)


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Weight files and, for a sharded folder, the names the index puts in each."""
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return {folder / SINGLE: None}
        raise FormatError(f"{folder}: neither {SINGLE} nor {INDEX} is there")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise FormatError(f"{index}: no weight_map object")
    files: dict[Path, set[str] | None] = {}
    by_file: dict[str, set[str]] = {}
    for name, file in cast("dict[str, str]", weight_map).items():
        by_file.setdefault(file, set()).add(name)
    for file, names in sorted(by_file.items()):
        if not re.fullmatch(r"[^/\\]+", file) or file in (".", ".."):
            raise FormatError(f"{index}: {file!r} is not a bare file name")
        if not (folder / file).is_file():
            raise FormatError(
                f"{folder / file}: shard is missing; {INDEX} puts {len(names)} tensors in it"
            )
        files[folder / file] = names
    return files


def _slab(path: Path, base: int, name: str, entry: Any) -> Slab:
    try:
        dtype, shape = DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
        start, stop = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: tensor {name} has a malformed entry ({error!r})") from None
    slab = Slab(path, base + start, dtype, shape)
    if slab.nbytes != stop - start:
        raise FormatError(
            f"{path}: tensor {name} spans {stop - start} bytes, "
            f"want {slab.nbytes} for {dtype} {list(shape)}"
        )
    return slab
