"""Optimizer state in Megatron v1: `distrib_optim.pt` beside each rank's `model_optim_rng.pt`.

It holds what Megatron-LM's distributed optimizer gathers on the first data-parallel rank:
`{buffer number: {(dtype, gradients' dtype): {"param", "exp_avg", "exp_avg_sq": flat tensors,
"numel_unpadded"}}, "buckets_coalesced": True}`, or a list of such, one for each chained optimizer:
where there are ranks of experts these have an optimizer of their own, the last one. A rank's file
has None for an optimizer whose first data-parallel rank is another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, cast

import torch

from llm_ckpt.arch import Arch
from llm_ckpt.errors import FormatError
from llm_ckpt.formats.megatron_v1 import Reading, read_ranks, reading_of
from llm_ckpt.formats.optimizer_state import (
    DROP_HINT,
    FULLY_RESHARDABLE,
    REMADE,
    SHARDING,
    OptimizerState,
    is_trained,
    plain_values,
)
from llm_ckpt.formats.param_buffer import (
    BufferParam,
    Placed,
    has_own_bucket,
    is_expert_parallel,
    place,
)
from llm_ckpt.formats.rank_files import RankFile, open_ranks
from llm_ckpt.formats.rank_state import Stored
from llm_ckpt.formats.torch_zip import TorchZip, read_torch_zip
from llm_ckpt.formats.unpickle import Lazy

STATE_FILE = "distrib_optim.pt"
WRITTEN_KINDS = ("param", "exp_avg", "exp_avg_sq")
_KINDS = {"fp32_param": "param"}  # torch_dist's name for it in some sharding types
_LENGTH = "numel_unpadded"
# Megatron-LM's bucket when `overlap_grad_reduce` is on and no size is given: 40 million values, or
# a million for each data-parallel rank.
_BUCKET, _BUCKET_OF_RANK = 40_000_000, 1_000_000
# Of the layout that saved it, so of no use in another.
_OF_A_RANK = frozenset({"rng_state", "rerun_state_machine"})


@dataclass(frozen=True, slots=True)
class StateBuffer:
    """A buffer to write: dtype of its parameters, length, tensors with their first elements."""

    dtype: torch.dtype
    numel: int
    tensors: tuple[tuple[int, Stored], ...]

    @property
    def gradients(self) -> torch.dtype:
        """Dtype of gradients, as Megatron-LM chooses: those of bf16 are summed in fp32."""
        return torch.float32 if self.dtype == torch.bfloat16 else self.dtype


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A buffer of a rank: its chunk, and its parameters in the order of their registration."""

    chunk: int
    params: tuple[tuple[str, Lazy], ...]


def has_v1_state(iteration: Path) -> bool:
    """Whether a v1 checkpoint holds optimizer state, of whatever form."""
    return any(iteration.glob(f"mp_rank_*/{STATE_FILE}")) or any(
        "optimizer" in rank.zip.value for rank in open_ranks(iteration)[:1]
    )


def read_v1_state(iteration: Path, arch: Arch) -> OptimizerState:
    """The optimizer state of a v1 checkpoint; only pickles are read, no tensors."""
    ranks = open_ranks(iteration)
    reading = reading_of(ranks, arch, where=str(iteration))
    kinds: dict[str, list[RankFile]] = {}
    for rank in ranks:
        path = rank.zip.path.with_name(STATE_FILE)
        if path.is_file():
            for kind, file in _state_files(rank, read_torch_zip(path), reading, ranks):
                kinds.setdefault(kind, []).append(file)
    if not kinds:
        raise FormatError(
            f"{iteration}: the optimizer's state is in the ranks' own files; want the distributed "
            f"optimizer's {STATE_FILE} beside them (--use-distributed-optimizer), {DROP_HINT}"
        )
    params = [param for name, param in reading.params.items() if is_trained(name)]
    tiled = {
        kind: read_ranks(reading, files, params, where=f"{iteration}: {kind} in {STATE_FILE}")
        for kind, files in kinds.items()
    }
    names = tuple(param.name for param in params)
    return OptimizerState(params=names, kinds=tiled, common=_common(ranks[0]))


def check_written(state: OptimizerState) -> None:
    """Refuse state that `distrib_optim.pt` has no place for."""
    kinds = {_KINDS.get(kind, kind) for kind in state.kinds}
    if kinds != set(WRITTEN_KINDS):
        raise FormatError(
            f"the optimizer's state has the tensors {', '.join(sorted(kinds))}; v1 holds "
            f"{', '.join(WRITTEN_KINDS)}: use --layout v2 or --no-optimizer"
        )
    if any(SHARDING not in each for each in _optimizers(state.common)):
        raise FormatError(
            "the optimizer's state is not of a distributed optimizer, and v1 is written for one: "
            "use --layout v2 or --no-optimizer"
        )


def written_kind(state: OptimizerState, kind: str) -> str:
    """What the source calls a kind that v1 writes."""
    return next(found for found in state.kinds if _KINDS.get(found, found) == kind)


def rank_values(state: OptimizerState, *, optimizers: int) -> dict[str, Any]:
    """What goes along into each rank's `model_optim_rng.pt`."""
    given = [{k: v for k, v in each.items() if k != SHARDING} for each in _optimizers(state.common)]
    made = given[:optimizers]
    made += [_for_experts(given[0])] * (optimizers - len(made))
    rest = {k: v for k, v in state.common.items() if k not in _OF_A_RANK | {"optimizer"}}
    return {"optimizer": made[0] if optimizers == 1 else made, **rest}


def state_buffers(
    chunks: Sequence[Sequence[tuple[Stored, torch.dtype]]],
    arch: Arch,
    *,
    stages: int,
    has_experts: bool,
) -> tuple[tuple[StateBuffer, ...], ...]:
    """The buffers of a rank's optimizers, for state dicts in the order of their registration.

    Written as for a run without `overlap_grad_reduce`; with it buffers are the same as long as
    every parameter has a multiple of 64 elements.
    """
    dense, experts = list[StateBuffer](), list[StateBuffer]()
    for chunk in chunks:
        for is_apart, buffers in ((False, dense), (True, experts)):
            mine = [
                (stored, dtype)
                for stored, dtype in chunk
                if is_trained(stored.pieces[0].param)
                and (has_experts and is_expert_parallel(stored.name)) == is_apart
            ]
            for dtype in dict.fromkeys(dtype for _, dtype in mine):
                same = [stored for stored, each in mine if each == dtype]
                params = [
                    BufferParam(prod(one.shape), has_own_bucket(one.name, arch, stages=stages))
                    for one in same
                ]
                placed = place(params, bucket_numel=None)
                tensors = sorted(zip(placed.starts, same, strict=True), key=lambda pair: pair[0])
                buffers.append(StateBuffer(dtype, placed.numel, tuple(tensors)))
    return (tuple(dense), tuple(experts)) if has_experts else (tuple(dense),)


def _optimizers(common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The optimizers of common.pt, chained ones in turn."""
    optimizer: dict[Any, Any] = common.get("optimizer", {})
    return [optimizer] if "optimizer" in optimizer else [optimizer[k] for k in sorted(optimizer)]


def _for_experts(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an optimizer of experts, made from those of all parameters."""
    inner = optimizer["optimizer"]
    groups = [{**group, "is_expert_parallel": True} for group in inner["param_groups"]]
    return {**optimizer, "optimizer": {**inner, "param_groups": groups}}


def _state_files(
    rank: RankFile, opened: TorchZip, reading: Reading, ranks: Sequence[RankFile]
) -> Iterator[tuple[str, RankFile]]:
    """A rank's file for each kind of state, with its tensors named as the weights are."""
    found: dict[str, list[dict[str, Lazy]]] = {}
    stages = max(each.pp for each in ranks) + 1
    for buffer, stored in _pairs(rank, opened, reading):
        placed = _place(rank, buffer, stored, reading.arch, stages, where=str(opened.path))
        for kind, flat in stored.items():
            if not isinstance(flat, Lazy):
                continue
            if flat.shape != (placed.numel,):
                raise FormatError(
                    f"{opened.path}: {kind} has shape {list(flat.shape)}, want [{placed.numel}]"
                )
            chunks = found.setdefault(kind, [{} for _ in rank.chunks])
            for (name, lazy), start in zip(buffer.params, placed.starts, strict=True):
                strides = tuple(prod(lazy.shape[i + 1 :]) for i in range(len(lazy.shape)))
                at = flat.offset + start
                chunks[buffer.chunk][name] = Lazy(flat.storage, at, lazy.shape, strides)
    for kind, chunks in found.items():
        yield kind, replace(rank, zip=opened, chunks=tuple(chunks))


def _pairs(
    rank: RankFile, opened: TorchZip, reading: Reading
) -> Iterator[tuple[_Buffer, Mapping[str, Any]]]:
    """The rank's buffers with what the file holds of each."""
    has_experts = reading.grid.ep > 1
    dense, experts = _buffers(rank, has_experts=has_experts)
    states = opened.value if isinstance(opened.value, list) else [opened.value]
    own = cast("list[Any]", states)
    apart = [own[:-1], own[-1:]] if experts and len(own) > 1 else [own, []]
    for buffers, optimizers in zip((dense, experts), apart, strict=True):
        if buffers and any(optimizer is None for optimizer in optimizers):
            continue
        stored = [each for optimizer in optimizers for each in _stored(optimizer, opened)]
        if len(stored) != len(buffers):
            raise FormatError(
                f"{opened.path}: {len(stored)} buffers, want {len(buffers)} for the parameters of "
                f"{rank.zip.path.name}; frozen parameters? {DROP_HINT}"
            )
        yield from zip(buffers, stored, strict=True)


def _stored(optimizer: Any, opened: TorchZip) -> Iterator[Mapping[str, Any]]:
    if not isinstance(optimizer, dict) or not optimizer.get("buckets_coalesced"):
        raise FormatError(
            f"{opened.path}: no buckets_coalesced; it was saved before February 2024: bring it up "
            f"to date with Megatron-LM (--ckpt-convert-update-legacy-dist-opt-format), {DROP_HINT}"
        )
    buffers = cast("dict[Any, Any]", optimizer)
    for number in sorted(key for key in buffers if isinstance(key, int)):
        yield from buffers[number].values()


def _buffers(rank: RankFile, *, has_experts: bool) -> tuple[list[_Buffer], list[_Buffer]]:
    """Buffers of the dense and of the expert-parallel parameters: one a chunk and dtype."""
    dense, experts = list[_Buffer](), list[_Buffer]()
    for chunk in range(len(rank.chunks)):
        # A state dict lists parameters as their modules register them.
        trained = [(name, lazy) for name, lazy in rank.tensors(chunk) if is_trained(name)]
        apart = [pair for pair in trained if has_experts and is_expert_parallel(pair[0])]
        rest = [pair for pair in trained if pair not in apart]
        for params, buffers in ((rest, dense), (apart, experts)):
            for dtype in dict.fromkeys(lazy.storage.dtype for _, lazy in params):
                same = tuple(pair for pair in params if pair[1].storage.dtype == dtype)
                buffers.append(_Buffer(chunk, same))
    return dense, experts


def _place(
    rank: RankFile,
    buffer: _Buffer,
    stored: Mapping[str, Any],
    arch: Arch,
    stages: int,
    *,
    where: str,
) -> Placed:
    """Where the buffer's parameters lie: of the ways Megatron-LM cuts buckets, the one that fits.

    Cutting a buffer into buckets only leaves the padding between them out, so two ways that give
    the same length give the same places.
    """
    params = [
        BufferParam(prod(lazy.shape), has_own_bucket(name, arch, stages=stages))
        for name, lazy in buffer.params
    ]
    ways = [place(params, bucket_numel=None)]
    if rank.pp == 0 and buffer.chunk == 0:
        ways += [place(params, bucket_numel=size) for size in _bucket_sizes(rank.args)]
    for placed in ways:
        if placed.numel == stored.get(_LENGTH):
            return placed
    lengths = " or ".join(str(placed.numel) for placed in dict.fromkeys(ways))
    raise FormatError(
        f"{where}: a buffer of {len(params)} parameters has {_LENGTH} {stored.get(_LENGTH)}, want "
        f"{lengths}; frozen parameters, or another order of modules? {DROP_HINT}"
    )


def _bucket_sizes(args: object) -> list[int]:
    given = getattr(args, "ddp_bucket_size", None)
    ranks = getattr(args, "data_parallel_size", 1)
    sizes = [_BUCKET, max(_BUCKET, _BUCKET_OF_RANK * (ranks if isinstance(ranks, int) else 1))]
    return ([given] if isinstance(given, int) else []) + sizes


def _common(rank: RankFile) -> dict[str, Any]:
    """The plain values of a rank's file, as torch_dist keeps them."""
    left = {
        key: value
        for key, value in rank.zip.value.items()
        if key not in REMADE | _OF_A_RANK and not key.startswith("model")
    }
    common = plain_values(rank.zip, left, where=str(rank.zip.path))
    optimizer = common.get("optimizer")
    if isinstance(optimizer, list):
        optimizers = cast("list[dict[str, Any]]", optimizer)
        common["optimizer"] = dict(enumerate(map(_marked, optimizers)))
    elif isinstance(optimizer, dict):
        common["optimizer"] = _marked(cast("dict[str, Any]", optimizer))
    return common


def _marked(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    return {**optimizer, SHARDING: FULLY_RESHARDABLE}
