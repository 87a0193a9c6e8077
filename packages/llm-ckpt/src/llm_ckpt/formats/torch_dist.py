"""Megatron v2, `torch_dist`: no sharding in the names, loads at any parallel size.

A folder of `.distcp` files (each a run of small torch.save zips), `.metadata` (a pickle that says
which chunk of which tensor lies where), `common.pt` and `metadata.json`. Layers are stacked on
axis 0 (`decoder.layers.mlp…` of shape [layers, …]) or keyed one by one; both are read. The contract
is tests/contracts/megatron_v2/SPEC.md.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from llm_ckpt.arch import Arch
from llm_ckpt.blocks import Param
from llm_ckpt.errors import FormatError
from llm_ckpt.formats import names
from llm_ckpt.formats.dist_metadata import Chunk, DistMetadata, StoredKey, read_metadata
from llm_ckpt.formats.hf import read_json
from llm_ckpt.formats.sections import section_named, split_suffix
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
# Modules whose `_extra_state` objects megatron-core asks for by default, empty or not.
# A parameter → the modules that lie beside it.
_EXTRA_STATE: Mapping[str, tuple[str, ...]] = {
    "self_attention.linear_qkv.weight": tuple(
        f"self_attention.{module}"
        for module in (
            *("linear_qkv", "linear_proj"),
            *("core_attention", "q_layernorm", "k_layernorm"),
        )
    ),
    "self_attention.in_proj.weight": tuple(
        f"self_attention.{module}" for module in ("in_proj", "out_proj", "out_norm")
    ),
    "mixer.in_proj.weight": ("mixer.in_proj", "mixer.out_proj"),
    "mlp.linear_fc1.weight": ("mlp.linear_fc1", "mlp.linear_fc2"),
}


def read_v2(iteration: Path, arch: Arch) -> Tiled:
    """Open an iteration folder; only `.metadata` is read until a tensor is."""
    backend = read_json(iteration / MARK).get("sharded_backend")
    if backend != BACKEND["sharded_backend"]:
        raise FormatError(f"{iteration / MARK}: sharded_backend {backend!r}, want 'torch_dist'")
    metadata = read_metadata(iteration)
    params = expected_params(arch)
    by_name = {param.name: param for param in params}
    tiles: dict[str, list[Tile]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for key, stored in metadata.tensors.items():
        if not names.is_weight(key.removeprefix("module.")):
            continue
        for name, tile in _tiles_of(key, stored, by_name, arch, iteration):
            if name == OUTPUT and arch.tie_embeddings:
                continue
            tiles.setdefault(name, [])
            tiles[name] += [tile] if tile else []
            dtypes[name] = stored.dtype
    return check_tiles(tiles, dtypes, params, where=str(iteration))


def key_of(
    name: str, arch: Arch, *, present: Container[str], is_per_layer: bool
) -> tuple[str, Shape, Shape]:
    """Key of a canonical name, with the axes that stacking adds: (key, extents, offsets).

    `present` are the canonical names of the whole model.
    """
    fused = names.to_fused(name, present, is_mamba=arch.mamba2 is not None)
    split = names.split_layer(fused)
    if split is None or is_per_layer:
        return fused, (), ()
    return f"decoder.layers.{split[1]}", (arch.num_layers,), (split[0],)


def extra_state_keys(params: Iterable[Param], num_layers: int, *, is_per_layer: bool) -> list[str]:
    """Keys of the empty objects that megatron-core wants beside linear layers."""
    present = {param.name for param in params}
    keys: list[str] = []
    for layer in range(num_layers):
        modules = (
            module
            for param, beside in _EXTRA_STATE.items()
            if names.join_layer(layer, param) in present
            for module in beside
        )
        for module in modules:
            if is_per_layer:
                keys.append(f"decoder.layers.{layer}.{module}._extra_state/shard_0_1")
            else:
                place = f"shard_{layer}_{num_layers}"
                keys.append(f"decoder.layers.{module}._extra_state/{place}")
    return keys


def must_be_per_layer(arch: Arch) -> bool:
    """Whether megatron-core keys the layers one by one, whatever is asked for.

    It does when they are not all alike (`non_homogeneous_layers` in transformer_block.py), and in
    a MambaStack.
    """
    kinds = {(run.mixer, run.feed_forward) for run in arch.layers}
    return len(kinds) > 1 or arch.mamba2 is not None


def write_object(sink: Any, value: object) -> None:
    """One torch.save file without tensors, as an item of a `.distcp`."""
    TorchZipWriter(sink).finish(value)


def _tiles_of(
    key: str, stored: StoredKey, by_name: Mapping[str, Param], arch: Arch, folder: Path
) -> Iterable[tuple[str, Tile | None]]:
    whole_key, suffix = split_suffix(key)
    name = names.to_canonical(whole_key)
    rest = names.stacked_rest(name)
    if rest is None:
        for chunk in stored.chunks:
            yield name, _tile(folder, key, stored, chunk, 0, by_name.get(name), suffix)
        return
    if stored.shape[0] != arch.num_layers:
        raise FormatError(
            f"{folder}: {key} stacks {stored.shape[0]} layers, want {arch.num_layers}"
        )
    for chunk in stored.chunks:
        for index in range(chunk.box.shape[0]):
            layer = names.join_layer(chunk.box.start[0] + index, rest)
            param = by_name.get(layer)
            yield layer, _tile(folder, key, stored, chunk, 1, param, suffix, index)


def _tile(
    folder: Path,
    key: str,
    stored: StoredKey,
    chunk: Chunk,
    lead: int,
    param: Param | None,
    suffix: str,
    index: int = 0,
) -> Tile | None:
    """The tile a chunk (its entry `index` on the stacked axis) is of a parameter."""
    shape = stored.shape[lead:]
    box = Box(chunk.box.start[lead:], chunk.box.stop[lead:])
    if param is not None and suffix:
        section = section_named(param, suffix)
        wanted = (section.stop - section.start, *param.shape[1:])
        if shape != wanted:
            raise FormatError(f"{folder}: {key} has shape {list(shape)}, want {list(wanted)}")
        box = moved(box, section.start)
    elif param is not None:
        is_padded = shape != param.shape and shape[1:] == param.shape[1:]
        if is_padded and param.cut.padded and shape[0] > param.shape[0]:
            clipped = box.overlap(whole(param.shape))
            if clipped is None:
                return None
            box = clipped
        elif shape != param.shape:
            raise FormatError(
                f"{folder}: {key} has shape {list(stored.shape)}, want {list(param.shape)} a layer"
                if lead
                else f"{folder}: {key} has shape {list(shape)}, want {list(param.shape)}"
            )
    find = cache(partial(_slab, folder / chunk.file, chunk, key, stored.dtype, lead, index, box))
    return Tile(box, find)


def _slab(
    path: Path, chunk: Chunk, key: str, dtype: torch.dtype, lead: int, index: int, box: Box
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
    if lead:
        slab = slab.entry(index)
    return slab.rows(0, box.shape[0]) if slab.shape else slab


__all__: Sequence[str] = [
    "BACKEND",
    "COMMON",
    "MARK",
    "DistMetadata",
    "extra_state_keys",
    "key_of",
    "read_v2",
    "write_object",
]
