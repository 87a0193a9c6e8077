"""What a conversion will write, file by file, before anything is written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from pathlib import PurePosixPath
from typing import Literal

import torch

from llm_ckpt.arch import Arch
from llm_ckpt.blocks import Param
from llm_ckpt.errors import LayoutError
from llm_ckpt.formats.dialects import Dialect
from llm_ckpt.formats.dist_keys import keys_of, must_be_per_layer
from llm_ckpt.formats.hf import shard_name
from llm_ckpt.formats.optimizer_state import is_trained, split_state
from llm_ckpt.formats.optimizer_v1 import STATE_FILE, WRITTEN_KINDS, StateBuffer, state_buffers
from llm_ckpt.formats.param_buffer import in_registered_order
from llm_ckpt.formats.rank_files import rank_path
from llm_ckpt.formats.rank_state import Stored, chunk_blocks, rank_tensors
from llm_ckpt.formats.sections import sections_of
from llm_ckpt.layout import Shape, padded_vocab
from llm_ckpt.placement import ChunkPlace, Grid, Pipeline, Rank
from llm_ckpt.table import Table

GIB = 1 << 30
MAX_HF_SHARD_BYTES = 5 * 10**9
MAX_DIST_FILE_BYTES = 2 * GIB
_STATE_BYTES = torch.float32.itemsize * len(WRITTEN_KINDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The layout wanted. `dtype` None keeps each tensor's own; the optimizer's always stay."""

    layout: Literal["hf", "v1", "v2"]
    grid: Grid = field(default_factory=Grid)
    pipeline: Pipeline = field(default_factory=Pipeline)
    dialect: Dialect = field(default_factory=Dialect)
    vocab_multiple: int = 128
    is_per_layer: bool = False
    dtype: torch.dtype | None = None
    max_shard_bytes: int = MAX_HF_SHARD_BYTES
    keeps_optimizer: bool = True


@dataclass(frozen=True, slots=True)
class HfTensor:
    """A tensor of a Hugging Face file, its pieces end to end: (parameter, which of its parts)."""

    name: str
    dtype: torch.dtype
    shape: Shape
    pieces: tuple[tuple[str, int], ...]

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return _nbytes(self.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class HfFile:
    """A safetensors file."""

    path: str
    nbytes: int
    tensors: tuple[HfTensor, ...]


@dataclass(frozen=True, slots=True)
class V1Tensor:
    """An entry of a rank's state dict: what it is made of, the dtype written."""

    stored: Stored
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return _nbytes(self.stored.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class V1File:
    """A rank's file: the tensors of each virtual chunk."""

    path: str
    nbytes: int
    chunks: tuple[tuple[V1Tensor, ...], ...]


@dataclass(frozen=True, slots=True)
class DistTensor:
    """Rows of a parameter in a `.distcp` file: key, the key's shape, place on stacked axes.

    The rows begin at `start` of the parameter and are all there is under the key.
    """

    name: str
    dtype: torch.dtype
    key: str
    shape: Shape
    lead: Shape
    start: int = 0


@dataclass(frozen=True, slots=True)
class DistFile:
    """A `.distcp` file."""

    path: str
    nbytes: int
    tensors: tuple[DistTensor, ...]


@dataclass(frozen=True, slots=True)
class StateFile:
    """A rank's `distrib_optim.pt`: buffers of each optimizer; None where another rank has them."""

    path: str
    nbytes: int
    optimizers: tuple[tuple[StateBuffer, ...] | None, ...]


FilePlan = HfFile | V1File | DistFile | StateFile


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
    """Lay the model out; a layout that does not divide raises with the equation.

    `dtypes` names the tensors to write: every parameter, and states of the optimizer, which keep
    their own dtypes.
    """
    target = replace(target, pipeline=target.pipeline.resolved(table.arch.num_layers))
    padded = table.arch.vocab_size
    if target.layout == "v1":
        padded = padded_vocab(padded, multiple=target.vocab_multiple, tp=target.grid.tp)
    kept = {
        name: (target.dtype if entry.param.is_cast else None) or dtypes[name]
        for name, entry in table.entries.items()
    }
    kept |= {name: dtype for name, dtype in dtypes.items() if name not in kept}
    if must_be_per_layer(table.arch):
        target = replace(target, is_per_layer=True)
    make = {"hf": _hf_files, "v1": _v1_files, "v2": _dist_files}[target.layout]
    files = tuple(make(table, kept, target, padded))
    largest = max(_nbytes(_param(table, name).shape, dtype) for name, dtype in kept.items())
    return Plan(target, files, padded, 2 * largest)


def _hf_files(
    table: Table, dtypes: Mapping[str, torch.dtype], target: Target, padded: int
) -> Iterator[HfFile]:
    del padded
    tensors = _hf_tensors(table, dtypes)
    sizes = [tensor.nbytes for tensor in tensors]
    groups = list(_pack(sizes, target.max_shard_bytes))
    for index, (start, stop) in enumerate(groups):
        members = tuple(tensors[start:stop])
        yield HfFile(shard_name(index, len(groups)), sum(sizes[start:stop]), members)


def _hf_tensors(table: Table, dtypes: Mapping[str, torch.dtype]) -> list[HfTensor]:
    """In model order; a tensor that holds all experts stands where its first one does."""
    tensors: dict[str, HfTensor] = {}
    for name, entry in table.entries.items():
        for number, part in enumerate(entry.parts):
            before = tensors[part.name].pieces if part.name in tensors else ()
            pieces = (*before, (name, number))
            tensors[part.name] = HfTensor(part.name, dtypes[name], part.stored_shape, pieces)
    again = (replace(tensors[of], name=copy) for copy, of in table.duplicates.items())
    return [*tensors.values(), *again]


def _v1_files(
    table: Table, dtypes: Mapping[str, torch.dtype], target: Target, padded: int
) -> Iterator[V1File | StateFile]:
    arch, pipeline, grid = table.arch, target.pipeline, target.grid
    has_state = len(dtypes) > len(table.entries)
    if arch.moe is None and grid.ep > 1:
        raise LayoutError(f"ep({grid.ep}): the model has no experts, want 1")
    if arch.moe is not None:
        grid.check_experts(arch.moe.experts)
    chunks = chunk_blocks(arch, pipeline.place(arch.num_layers), pipeline.head)
    ranks = grid.ranks()
    shape = {"is_pipelined": pipeline.pp > 1, "has_experts": grid.ep > 1}
    for stage in range(pipeline.pp):
        for rank in ranks:
            tensors = tuple(
                tuple(
                    V1Tensor(stored, _common_dtype(stored, dtypes))
                    for stored in rank_tensors(
                        chunks.get(ChunkPlace(stage, chunk), ()),
                        rank,
                        target.dialect,
                        arch,
                        padded_vocab=padded,
                    )
                )
                for chunk in range(pipeline.vpp)
            )
            path = rank_path(tp=rank.tp, pp=stage, ep=rank.ep, **shape)
            if has_state:
                tensors = tuple(_registered(chunk) for chunk in tensors)
                yield _state_file(path, tensors, rank, target, arch)
            size = sum(tensor.nbytes for chunk in tensors for tensor in chunk)
            yield V1File(path, size, tensors)


def _registered(chunk: Sequence[V1Tensor]) -> tuple[V1Tensor, ...]:
    """A state dict whose order says where each parameter lies in the optimizer's buffers."""
    trained = {t.stored.name: t for t in chunk if is_trained(t.stored.pieces[0].param)}
    rest = (tensor for tensor in chunk if tensor.stored.name not in trained)
    return (*(trained[name] for name in in_registered_order(trained)), *rest)


def _state_file(
    path: str, chunks: Sequence[Sequence[V1Tensor]], rank: Rank, target: Target, arch: Arch
) -> StateFile:
    grid = target.grid
    if grid.tp_extends_ep:
        raise LayoutError("moe-tp-extend-ep: want --no-optimizer; its state is not written yet")
    buffers = state_buffers(
        [[(tensor.stored, tensor.dtype) for tensor in chunk] for chunk in chunks],
        arch,
        stages=target.pipeline.pp,
        has_experts=grid.ep > 1,
    )
    # The first data-parallel rank of a tensor rank is the global rank of the same number.
    holds_dense = rank.ep == rank.tp // grid.expert_tensor % grid.ep
    optimizers = tuple(own if i or holds_dense else None for i, own in enumerate(buffers))
    size = sum(buffer.numel for own in optimizers for buffer in own or ())
    return StateFile(
        str(PurePosixPath(path).with_name(STATE_FILE)), size * _STATE_BYTES, optimizers
    )


def _common_dtype(stored: Stored, dtypes: Mapping[str, torch.dtype]) -> torch.dtype:
    if len(stored.pieces) == 1:  # most of hundreds of thousands
        return dtypes[stored.pieces[0].param]
    found = {piece.param: dtypes[piece.param] for piece in stored.pieces}
    if len(set(found.values())) > 1:
        text = ", ".join(f"{name} {dtype}" for name, dtype in found.items())
        raise LayoutError(f"{stored.name} would hold different dtypes: {text}; give --dtype")
    return next(iter(found.values()))


def _dist_files(
    table: Table, dtypes: Mapping[str, torch.dtype], target: Target, padded: int
) -> Iterator[DistFile]:
    del padded
    tensors: list[DistTensor] = []
    for name, dtype in dtypes.items():
        param = _param(table, name)
        prefix = name.removesuffix(param.name)
        keys = keys_of(
            param.name, table.arch, present=table.entries, is_per_layer=target.is_per_layer
        )
        for key, part in product(keys, sections_of(param)):
            text = prefix + key.key + part.suffix
            shape = (*key.extents, part.stop - part.start, *param.shape[1:])
            tensors.append(DistTensor(name, dtype, text, shape, key.place, part.start))
    sizes = [_nbytes(t.shape[len(t.lead) :], t.dtype) for t in tensors]
    for index, (start, stop) in enumerate(_pack(sizes, MAX_DIST_FILE_BYTES)):
        members = tuple(tensors[start:stop])
        yield DistFile(f"__0_{index}.distcp", sum(sizes[start:stop]), members)


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


def _param(table: Table, name: str) -> Param:
    """The parameter of this name, or whose state has it."""
    return table.entries[split_state(name)[1]].param


def _nbytes(shape: Shape, dtype: torch.dtype) -> int:
    return prod(shape) * dtype.itemsize
