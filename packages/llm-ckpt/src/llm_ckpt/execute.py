"""Writing one planned file: tensor by tensor, from a source to a stream, in bounded memory."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_ckpt.formats.dist_metadata import Chunk
from llm_ckpt.formats.hf import header_bytes
from llm_ckpt.formats.megatron_v1 import CHECKPOINT_VERSION, model_args
from llm_ckpt.formats.stream import FileFact, NewFile
from llm_ckpt.formats.torch_zip import StoredTensor, TorchZipWriter
from llm_ckpt.layout import Box
from llm_ckpt.plan import DistFile, DistTensor, FilePlan, HfFile, Plan, V1File
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
    """One file of a plan, below `folder`."""

    plan: Plan
    file: FilePlan
    folder: Path
    iteration: int


def write_planned(source: WeightSource, job: Job, on_bytes: OnBytes) -> Written:
    """Write one file and commit it under its name."""
    with NewFile(job.folder / job.file.path) as stream:
        if isinstance(job.file, HfFile):
            _write_hf(source, job.file, stream, on_bytes)
            chunks: list[tuple[str, Chunk]] = []
        elif isinstance(job.file, V1File):
            _write_v1(source, job, job.file, stream, on_bytes)
            chunks = []
        else:
            chunks = list(_write_dist(source, job.file, stream, on_bytes))
        return Written(job.file.path, stream.commit(), tuple(chunks))


def rank_args(source: WeightSource, job: Job) -> dict[str, Any]:
    """The `args` of a Megatron checkpoint."""
    target, arch = job.plan.target, source.architecture
    dtype = target.dtype or source.dtype(source.names()[0])
    facts = model_args(
        arch,
        tp=target.tp,
        pp=target.pipeline.pp,
        vpp=target.pipeline.vpp,
        padded_vocab_size=job.plan.padded_vocab_size,
        dtype=dtype,
    )
    facts["make_vocab_size_divisible_by"] = target.vocab_multiple
    return facts | {"iteration": job.iteration}


def _write_hf(source: WeightSource, file: HfFile, stream: NewFile, on_bytes: OnBytes) -> None:
    stream.write(header_bytes([(t.name, t.dtype, t.shape) for t in file.tensors]))
    parts: tuple[Tensor, ...] = ()
    held: str | None = None  # the parameter that `parts` are of: neighbours share one reading
    for tensor in file.tensors:
        for name, number in tensor.pieces:
            if name != held:
                rule = source.table.entries[name].rule
                parts, held = rule.split(source.read(name), source.architecture), name
            part = parts[number].to(tensor.dtype)
            stream.write_tensor(part)
            on_bytes(part.nbytes)


def _write_v1(
    source: WeightSource, job: Job, file: V1File, stream: NewFile, on_bytes: OnBytes
) -> None:
    writer = TorchZipWriter(stream)
    shard = (file.shard.rank, file.shard.size)
    states: list[Mapping[str, StoredTensor]] = []
    for chunk in file.chunks:
        state: dict[str, StoredTensor] = {}
        for tensor in chunk:
            piece = source.read(tensor.name, shard, padded_vocab_size=job.plan.padded_vocab_size)
            kept = piece.to(tensor.dtype)
            state[tensor.local] = writer.tensor([kept], kept.dtype, tuple(kept.shape))
            on_bytes(kept.nbytes)
        states.append(state)
    keys = ["model"] if len(states) == 1 else [f"model{i}" for i in range(len(states))]
    writer.finish(
        {
            "args": Namespace(**rank_args(source, job)),
            "checkpoint_version": CHECKPOINT_VERSION,
            "iteration": job.iteration,
            **dict(zip(keys, states, strict=True)),
        }
    )


def _write_dist(
    source: WeightSource,
    file: DistFile,
    stream: NewFile,
    on_bytes: OnBytes,
) -> Iterator[tuple[str, Chunk]]:
    whole, held = torch.empty(0), ""  # sections of one parameter share one reading
    for planned in file.tensors:
        if planned.name != held:
            del whole
            whole, held = source.read(planned.name), planned.name
        tensor = whole[planned.rows].to(planned.dtype)
        for box, rows in _row_blocks(planned, tensor):
            start = stream.position
            writer = TorchZipWriter(stream)
            writer.finish(writer.tensor([rows], rows.dtype, box.shape))
            length = stream.position - start
            yield planned.key, Chunk(box, file.path, start, length)
        on_bytes(tensor.nbytes)


def _row_blocks(planned: DistTensor, tensor: Tensor) -> Iterator[tuple[Box, Tensor]]:
    """Row blocks of a tensor with their boxes in the key's shape (stacked axes lead)."""
    row = max(1, tensor.nbytes // tensor.shape[0])
    height = max(1, MAX_CHUNK_BYTES // row)
    lead, stop = planned.lead, tuple(i + 1 for i in planned.lead)
    rest = (0,) * (tensor.dim() - 1)
    for start in range(0, tensor.shape[0], height):
        block = tensor[start : start + height]
        end = (start + block.shape[0], *tensor.shape[1:])
        yield Box((*lead, start, *rest), (*stop, *end)), block
