"""Megatron v2, `torch_dist`: no sharding in the names, loads at any parallel size.

A folder of `.distcp` files (each a run of small torch.save zips), `.metadata` (a pickle that says
which chunk of which tensor lies where), `common.pt` and `metadata.json`. Layers are stacked on
axis 0 (`decoder.layers.mlp…` of shape [layers, …]) or keyed one by one; both are read. The contract
is tests/contracts/megatron_v2/SPEC.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from llm_ckpt.arch import Arch
from llm_ckpt.blocks import Param
from llm_ckpt.errors import FormatError
from llm_ckpt.formats import names
from llm_ckpt.formats.dist_keys import Found, find
from llm_ckpt.formats.dist_metadata import Chunk, StoredKey, read_metadata
from llm_ckpt.formats.hf import read_json
from llm_ckpt.formats.sections import section_named
from llm_ckpt.formats.slab import Slab, Tile, check_length
from llm_ckpt.formats.tiled import Tiled, check_tiles
from llm_ckpt.formats.torch_zip import TorchZipWriter, read_torch_zip
from llm_ckpt.formats.unpickle import Lazy
from llm_ckpt.layout import Box, Shape, moved, whole
from llm_ckpt.params import OUTPUT, expected_params

MARK = "metadata.json"
COMMON = "common.pt"
BACKEND: Mapping[str, object] = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


def read_v2(iteration: Path, arch: Arch) -> Tiled:
    """Open an iteration folder; only `.metadata` is read until a tensor is."""
    backend = read_json(iteration / MARK).get("sharded_backend")
    if backend != BACKEND["sharded_backend"]:
        raise FormatError(f"{iteration / MARK}: sharded_backend {backend!r}, want 'torch_dist'")
    stored = {
        key: stored
        for key, stored in read_metadata(iteration).tensors.items()
        if names.is_weight(key.removeprefix("module."))
    }
    return read_keys(stored, expected_params(arch), arch, folder=iteration, where=str(iteration))


def read_keys(
    keys: Mapping[str, StoredKey],
    params: Sequence[Param],
    arch: Arch,
    *,
    folder: Path,
    where: str,
) -> Tiled:
    """The tiles of `params` under the keys that are theirs, in files of `folder`."""
    by_name = {param.name: param for param in params}
    tiles: dict[str, list[Tile]] = {}
    dtypes: dict[str, torch.dtype] = {}
    sources: dict[tuple[str, int | None, str], str] = {}
    for key, stored in keys.items():
        found = find(key)
        # a norm may be there under two names
        if sources.setdefault((found.pattern, found.half, found.section), key) != key:
            continue
        for name, tile in _tiles_of(key, stored, found, by_name, arch, folder):
            if name == OUTPUT and arch.tie_embeddings:
                continue
            tiles.setdefault(name, [])
            tiles[name] += [tile] if tile else []
            dtypes[name] = stored.dtype
    return check_tiles(tiles, dtypes, params, where=where)


def write_object(sink: Any, value: object) -> None:
    """One torch.save file without tensors, as an item of a `.distcp`."""
    TorchZipWriter(sink).finish(value)


def _tiles_of(
    key: str,
    stored: StoredKey,
    found: Found,
    by_name: Mapping[str, Param],
    arch: Arch,
    folder: Path,
) -> Iterable[tuple[str, Tile | None]]:
    wanted = {"i": arch.num_layers, "e": arch.moe.experts if arch.moe else 0}
    extents = tuple(wanted[axis] for axis in found.axes)
    lead = len(extents)
    if stored.shape[:lead] != extents:
        what = {"i": "layers", "e": "experts"}
        axes = ", ".join(f"{what[axis]}({wanted[axis]})" for axis in found.axes)
        raise FormatError(f"{folder}: {key} has shape {list(stored.shape)}, want {axes} in front")
    for chunk in stored.chunks:
        spans = zip(chunk.box.start[:lead], chunk.box.stop[:lead], strict=True)
        for place in product(*(range(start, stop) for start, stop in spans)):
            name = found.pattern.format(**dict(zip(found.axes, place, strict=True)))
            yield name, _tile(folder, key, stored, chunk, place, by_name.get(name), found)


def _tile(
    folder: Path,
    key: str,
    stored: StoredKey,
    chunk: Chunk,
    place: Shape,
    param: Param | None,
    found: Found,
) -> Tile | None:
    """The tile a chunk (its entry `place` on the stacked axes) is of a parameter."""
    lead = len(place)
    shape = stored.shape[lead:]
    box = Box(chunk.box.start[lead:], chunk.box.stop[lead:])
    if param is not None:
        start, stop = _rows(param, found)
        wanted = (stop - start, *param.shape[1:])
        is_padded = param.cut.padded and shape[1:] == wanted[1:] and shape[0] > wanted[0]
        if shape != wanted and not is_padded:
            each = " each" if lead else ""
            raise FormatError(
                f"{folder}: {key} has shape {list(stored.shape)}, want {list(wanted)}{each}"
            )
        if is_padded:
            clipped = box.overlap(whole(param.shape))
            if clipped is None:
                return None
            box = clipped
        box = moved(box, start) if start else box
    entry = tuple(at - first for at, first in zip(place, chunk.box.start[:lead], strict=True))
    height = box.shape[0] if box.shape else 0
    find_slab = cache(partial(_slab, folder / chunk.file, chunk, key, stored.dtype, entry, height))
    return Tile(box, find_slab)


def _rows(param: Param, found: Found) -> tuple[int, int]:
    """The rows of a parameter that a key holds."""
    if found.half is not None:
        each = param.shape[0] // 2
        return found.half * each, (found.half + 1) * each
    section = section_named(param, found.section)
    return section.start, section.stop


def _slab(
    path: Path, chunk: Chunk, key: str, dtype: torch.dtype, entry: Shape, height: int
) -> Slab:
    if not path.is_file():
        raise FormatError(f"{path}: file is missing; it holds {key}")
    if chunk.offset + chunk.length > path.stat().st_size:
        raise FormatError(
            f"{path}: {path.stat().st_size} bytes, want {chunk.offset + chunk.length} (truncated?)"
        )
    opened = read_torch_zip(path, start=chunk.offset, length=chunk.length)
    if not isinstance(opened.value, Lazy):
        raise FormatError(f"{path}: item of {key} is {type(opened.value).__name__}, want a tensor")
    lazy = opened.value
    if lazy.shape != chunk.box.shape or lazy.storage.dtype != dtype:
        raise FormatError(
            f"{path}: item of {key} is {lazy.storage.dtype} {list(lazy.shape)}, "
            f"want {dtype} {list(chunk.box.shape)}"
        )
    slab = opened.slab(lazy)
    check_length([slab])
    for index in entry:
        slab = slab.entry(index)
    return slab.rows(0, height) if slab.shape else slab
