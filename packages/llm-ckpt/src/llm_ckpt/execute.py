"""Writing one planned file: tensor by tensor, from a source to a stream, in bounded memory."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from llm_ckpt.formats.dist_metadata import Chunk
from llm_ckpt.formats.hf import header_bytes
from llm_ckpt.formats.legacy import nested
from llm_ckpt.formats.model_args import model_args
from llm_ckpt.formats.optimizer_state import OptimizerState, state_name
from llm_ckpt.formats.optimizer_v1 import (
    WRITTEN_KINDS,
    StateBuffer,
    check_written,
    rank_values,
    written_kind,
)
from llm_ckpt.formats.rank_files import CHECKPOINT_VERSION
from llm_ckpt.formats.rank_state import Stored
from llm_ckpt.formats.stream import FileFact, NewFile
from llm_ckpt.formats.torch_zip import StoredTensor, TorchZipWriter
from llm_ckpt.layout import Box
from llm_ckpt.plan import DistFile, DistTensor, FilePlan, HfFile, StateFile, Target, V1File
from llm_ckpt.rules import STACKED
from llm_ckpt.source import WeightSource

MAX_CHUNK_BYTES = 128 << 20
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Written:
    """A finished file; for `.distcp` files also where each chunk of each key lies."""

    path: str
    fact: FileFact
    chunks: tuple[tuple[str, Chunk], ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """One file of a plan, below `folder`: all that a worker is told."""

    target: Target
    padded_vocab_size: int
    file: FilePlan
    folder: Path
    iteration: int


def write_planned(source: WeightSource, job: Job, on_bytes: OnBytes) -> Written:
    """Write one file under its name; it is the caller's to sync."""
    path, size, is_hf = job.folder / job.file.path, job.file.nbytes, job.target.layout == "hf"
    # A Hugging Face folder has no place for checksums, so none are made.
    with NewFile(path, is_hashed=not is_hf, planned_bytes=size) as stream:
        if isinstance(job.file, HfFile):
            _write_hf(source, job.file, stream, on_bytes)
            chunks: list[tuple[str, Chunk]] = []
        elif isinstance(job.file, V1File):
            _write_v1(source, job, job.file, stream, on_bytes)
            chunks = []
        elif isinstance(job.file, StateFile):
            _write_state(source, job, job.file, stream, on_bytes)
            chunks = []
        else:
            chunks = list(_write_dist(source, job.file, stream, on_bytes))
        return Written(job.file.path, stream.commit(is_durable=False), tuple(chunks))


def rank_args(source: WeightSource, job: Job) -> dict[str, Any]:
    """The `args` of a Megatron checkpoint."""
    target, arch = job.target, source.architecture
    dtype = target.dtype or source.dtype(source.names()[0])
    facts = model_args(
        arch,
        pipeline=target.pipeline,
        grid=target.grid,
        dialect=target.dialect,
        padded_vocab_size=job.padded_vocab_size,
        dtype=dtype,
    )
    facts["make_vocab_size_divisible_by"] = target.vocab_multiple
    progress = {"iteration": job.iteration, "consumed_train_samples": source.consumed_samples}
    return facts | progress


def carried_state(source: WeightSource, target: Target) -> OptimizerState | None:
    """The optimizer state that goes along to the target."""
    if target.layout == "hf" or not target.keeps_optimizer or source.optimizer is None:
        return None
    if target.layout == "v1":
        check_written(source.optimizer)
    return source.optimizer


def _write_hf(source: WeightSource, file: HfFile, stream: NewFile, on_bytes: OnBytes) -> None:
    stream.write(header_bytes([(t.name, t.dtype, t.shape) for t in file.tensors]))
    rows, parts = _Rows(source), _Parts(source)
    for tensor in file.tensors:
        for name, number in tensor.pieces:
            entry = source.table.entries[name]
            if isinstance(entry.rule, STACKED):
                heights = [part.shape[0] for part in entry.parts]
                start = sum(heights[:number])
                blocks = rows.take(name, start, start + heights[number])
            else:
                blocks = iter([parts.take(name, number)])
            for block in blocks:
                stream.write_tensor(block, tensor.dtype)
                on_bytes(block.numel() * tensor.dtype.itemsize)


def _write_v1(
    source: WeightSource, job: Job, file: V1File, stream: NewFile, on_bytes: OnBytes
) -> None:
    writer = TorchZipWriter(stream)
    states: list[Mapping[str, Any]] = []
    for chunk in file.chunks:
        state: dict[str, StoredTensor] = {}
        for tensor in chunk:
            stored = tensor.stored
            parts = _parts(source, stored, job.padded_vocab_size)
            state[stored.name] = writer.tensor(parts, tensor.dtype, stored.shape)
            on_bytes(tensor.nbytes)
        states.append(_as_nested(state, source, job.target))
    kept = carried_state(source, job.target)
    optimizers = 2 if job.target.grid.ep > 1 else 1
    values = rank_values(kept, optimizers=optimizers) if kept else {}
    keys = ["model"] if len(states) == 1 else [f"model{i}" for i in range(len(states))]
    writer.finish(
        {
            "args": Namespace(**rank_args(source, job)),
            "checkpoint_version": CHECKPOINT_VERSION,
            "iteration": job.iteration,
            **{key: _with_stored(writer, value) for key, value in values.items()},
            **dict(zip(keys, states, strict=True)),
        }
    )


def _as_nested(
    state: dict[str, StoredTensor], source: WeightSource, target: Target
) -> dict[str, Any]:
    if target.dialect.name != "legacy":
        return state
    return nested(state, is_tied=source.architecture.tie_embeddings)


def _write_state(
    source: WeightSource, job: Job, file: StateFile, stream: NewFile, on_bytes: OnBytes
) -> None:
    kept = carried_state(source, job.target)
    assert kept is not None
    writer = TorchZipWriter(stream)
    states: list[dict[object, object] | None] = []
    for buffers in file.optimizers:
        state: dict[object, object] = {"buckets_coalesced": True}
        for number, buffer in enumerate(buffers or ()):
            flat: dict[str, StoredTensor | int] = {}
            for kind in WRITTEN_KINDS:
                parts = _flat_parts(source, buffer, written_kind(kept, kind), job.padded_vocab_size)
                flat[kind] = writer.tensor(parts, torch.float32, (buffer.numel,))
                on_bytes(buffer.numel * torch.float32.itemsize)
            flat["numel_unpadded"] = buffer.numel
            state[number] = {(buffer.dtype, buffer.gradients): flat}
        states.append(state if buffers is not None else None)
    writer.finish(states[0] if len(states) == 1 else states)


def _flat_parts(
    source: WeightSource, buffer: StateBuffer, kind: str, padded_vocab_size: int
) -> Iterator[Tensor]:
    """A state of every parameter of a buffer, with zeros where none lies."""
    end = 0
    for start, stored in buffer.tensors:
        if start > end:
            yield torch.zeros(start - end)
        pieces = tuple(replace(p, param=state_name(kind, p.param)) for p in stored.pieces)
        yield from _parts(source, replace(stored, pieces=pieces), padded_vocab_size)
        end = start + prod(stored.shape)
    if buffer.numel > end:
        yield torch.zeros(buffer.numel - end)


def _with_stored(writer: TorchZipWriter, value: Any) -> Any:
    """A plain value whose tensors are written, with what stands for them."""
    if isinstance(value, Tensor):
        return writer.tensor([value.reshape(-1)], value.dtype, tuple(value.shape))
    if isinstance(value, dict):
        pairs = cast("dict[Any, Any]", value).items()
        return {key: _with_stored(writer, each) for key, each in pairs}
    if isinstance(value, list | tuple):
        items = cast("list[Any]", value)
        return type(items)(_with_stored(writer, each) for each in items)
    return value


def _parts(source: WeightSource, stored: Stored, padded_vocab_size: int) -> Iterator[Tensor]:
    """The pieces of a stored tensor, in the order of its bytes."""
    for piece in stored.pieces:
        shard = (piece.shard.rank, piece.shard.size)
        if piece.rows is None and not stored.is_transposed:
            yield from source.blocks(piece.param, shard, padded_vocab_size=padded_vocab_size)
            continue
        tensor = source.read(piece.param, shard, padded_vocab_size=padded_vocab_size)
        if stored.is_transposed:
            tensor = tensor.T.contiguous()
        if piece.rows is None:
            yield tensor
        else:
            yield from (tensor[start:stop] for start, stop in piece.rows)
        del tensor  # gives its memory to the next


def _write_dist(
    source: WeightSource,
    file: DistFile,
    stream: NewFile,
    on_bytes: OnBytes,
) -> Iterator[tuple[str, Chunk]]:
    rows = _Rows(source)
    for planned in file.tensors:
        for box, first, last in _chunks(planned):
            start = stream.position
            writer = TorchZipWriter(stream)
            blocks = rows.take(planned.name, first, last)
            writer.finish(writer.tensor(blocks, planned.dtype, box.shape))
            length = stream.position - start
            yield planned.key, Chunk(box, file.path, start, length)
            on_bytes(prod(box.shape) * planned.dtype.itemsize)


def _chunks(planned: DistTensor) -> Iterator[tuple[Box, int, int]]:
    """Boxes in the key's shape (stacked axes lead), and the rows of the parameter in each."""
    shape = planned.shape[len(planned.lead) :]
    row = max(1, prod(shape[1:]) * planned.dtype.itemsize)
    height = max(1, MAX_CHUNK_BYTES // row)
    lead, after = planned.lead, tuple(i + 1 for i in planned.lead)
    rest = (0,) * (len(shape) - 1)
    for start in range(0, shape[0], height):
        stop = min(start + height, shape[0])
        box = Box((*lead, start, *rest), (*after, stop, *shape[1:]))
        yield box, planned.start + start, planned.start + stop


class _Rows:
    """Rows of one parameter after the other; neighbours share one reading."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._name, self._next = "", 0
        self._blocks: Iterator[Tensor] = iter(())
        self._left = torch.empty(0)

    def take(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """Rows `start..stop`, a block at a time."""
        if name != self._name or start < self._next:
            self._left = torch.empty(0)  # gives its memory to the next
            self._name, self._next, self._blocks = name, 0, self._source.blocks(name)
        for _ in self._upto(start):
            pass
        yield from self._upto(stop)

    def _upto(self, stop: int) -> Iterator[Tensor]:
        while self._next < stop:
            if not self._left.shape[0]:
                self._left = next(self._blocks)
            count = min(stop - self._next, self._left.shape[0])
            rows, self._left = self._left[:count], self._left[count:]
            self._next += count
            yield rows


class _Parts:
    """Hugging Face tensors of one parameter after the other; neighbours share one reading."""

    def __init__(self, source: WeightSource) -> None:
        self._source, self._name = source, ""
        self._parts: tuple[Tensor, ...] = ()

    def take(self, name: str, number: int) -> Tensor:
        """Part `number` of a parameter."""
        if name != self._name:
            self._parts = ()  # gives its memory to the next
            rule = self._source.table.entries[name].rule
            self._parts = rule.split(self._source.read(name), self._source.architecture)
            self._name = name
        return self._parts[number]
