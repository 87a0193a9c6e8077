"""What a conversion will write, file by file, before anything is written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch

from llm_ckpt.formats.hf import shard_name
from llm_ckpt.formats.megatron_v1 import rank_entries, rank_path
from llm_ckpt.formats.torch_dist import key_of
from llm_ckpt.layout import Cut, Shape, Shard, padded_vocab, piece_boxes, piece_shape
from llm_ckpt.placement import Pipeline
from llm_ckpt.table import Entry, Table

GIB = 1 << 30
MAX_HF_SHARD_BYTES = 5 * 10**9
MAX_DIST_FILE_BYTES = 2 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The layout wanted. `dtype` None keeps each tensor's own."""

    layout: Literal["hf", "v1", "v2"]
    tp: int = 1
    pipeline: Pipeline = field(default_factory=Pipeline)
    vocab_multiple: int = 128
    is_per_layer: bool = False
    dtype: torch.dtype | None = None
    max_shard_bytes: int = MAX_HF_SHARD_BYTES


@dataclass(frozen=True, slots=True)
class HfTensor:
    """A tensor of a Hugging Face file."""

    name: str
    dtype: torch.dtype
    shape: Shape


@dataclass(frozen=True, slots=True)
class HfFile:
    """A safetensors file: whole parameters, each with the tensors it splits into."""

    path: str
    nbytes: int
    entries: tuple[tuple[str, tuple[HfTensor, ...]], ...]


@dataclass(frozen=True, slots=True)
class V1File:
    """A rank's file: for each virtual chunk the (local name, parameter) pairs."""

    path: str
    nbytes: int
    shard: Shard
    chunks: tuple[tuple[tuple[str, str], ...], ...]


@dataclass(frozen=True, slots=True)
class DistTensor:
    """A parameter of a `.distcp` file: its key, the key's shape, and its place on stacked axes."""

    name: str
    key: str
    shape: Shape
    lead: Shape


@dataclass(frozen=True, slots=True)
class DistFile:
    """A `.distcp` file."""

    path: str
    nbytes: int
    tensors: tuple[DistTensor, ...]


FilePlan = HfFile | V1File | DistFile


@dataclass(frozen=True, slots=True)
class Plan:
    """Files in writing order. `peak_bytes` is the largest tensor twice: read, and rearranged."""

    target: Target
    files: tuple[FilePlan, ...]
    padded_vocab_size: int
    peak_bytes: int

    @property
    def total_bytes(self) -> int:
        """Tensor bytes of all files."""
        return sum(file.nbytes for file in self.files)


def make_plan(table: Table, dtypes: Mapping[str, torch.dtype], target: Target) -> Plan:
    """Lay the model out; a layout that does not divide raises with the equation."""
    padded = table.arch.vocab_size
    if target.layout == "v1":
        padded = padded_vocab(padded, multiple=target.vocab_multiple, tp=target.tp)
    kept = {name: target.dtype or dtype for name, dtype in dtypes.items()}
    make = {"hf": _hf_files, "v1": _v1_files, "v2": _dist_files}[target.layout]
    files = tuple(make(table, kept, target, padded))
    largest = max(_nbytes(e.param.shape, kept[n]) for n, e in table.entries.items())
    return Plan(target, files, padded, 2 * largest)


def _hf_files(
    table: Table, dtypes: Mapping[str, torch.dtype], target: Target, padded: int
) -> Iterator[HfFile]:
    del padded
    entries = list(table.entries.values())
    sizes = [_nbytes(e.param.shape, dtypes[e.param.name]) for e in entries]
    groups = list(_pack(sizes, target.max_shard_bytes))
    for index, (start, stop) in enumerate(groups):
        members = tuple(
            (e.param.name, tuple(_hf_tensors(e, dtypes[e.param.name]))) for e in entries[start:stop]
        )
        yield HfFile(shard_name(index, len(groups)), sum(sizes[start:stop]), members)


def _hf_tensors(entry: Entry, dtype: torch.dtype) -> Iterator[HfTensor]:
    for part in entry.parts:
        yield HfTensor(part.name, dtype, part.shape)


def _v1_files(
    table: Table, dtypes: Mapping[str, torch.dtype], target: Target, padded: int
) -> Iterator[V1File]:
    pipeline = target.pipeline
    slots = pipeline.place(table.arch.num_layers)
    for stage in range(pipeline.pp):
        chunks = rank_entries(table.arch, slots, pp=pipeline.pp, vpp=pipeline.vpp, stage=stage)
        for rank in range(target.tp):
            shard = Shard(rank, target.tp)
            size = 0
            for _, name in (pair for chunk in chunks for pair in chunk):
                size += _piece_bytes(table.entries[name], shard, padded, dtypes[name])
            path = rank_path(tp=rank, pp=stage, is_pipelined=pipeline.pp > 1)
            yield V1File(path, size, shard, chunks)


def _dist_files(
    table: Table, dtypes: Mapping[str, torch.dtype], target: Target, padded: int
) -> Iterator[DistFile]:
    del padded
    tensors: list[DistTensor] = []
    for name, entry in table.entries.items():
        key, extents, lead = key_of(name, table.arch.num_layers, is_per_layer=target.is_per_layer)
        tensors.append(DistTensor(name, key, (*extents, *entry.param.shape), lead))
    sizes = [_nbytes(table.entries[t.name].param.shape, dtypes[t.name]) for t in tensors]
    for index, (start, stop) in enumerate(_pack(sizes, MAX_DIST_FILE_BYTES)):
        members = tuple(tensors[start:stop])
        yield DistFile(f"__0_{index}.distcp", sum(sizes[start:stop]), members)


def _piece_bytes(entry: Entry, shard: Shard, padded: int, dtype: torch.dtype) -> int:
    shape = entry.param.shape
    if entry.param.cut is Cut.VOCAB:
        shape = (padded, *shape[1:])
    boxes = piece_boxes(shape, entry.param.cut, shard, where=entry.param.name)
    return _nbytes(piece_shape(boxes), dtype)


def _pack(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive items whose sizes sum to at most `limit` (or a single larger item)."""
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > limit:
            yield start, index
            start, total = index, 0
        total += size
    if sizes:
        yield start, len(sizes)


def _nbytes(shape: Shape, dtype: torch.dtype) -> int:
    return prod(shape) * dtype.itemsize
