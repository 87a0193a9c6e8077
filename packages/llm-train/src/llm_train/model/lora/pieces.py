"""Where what a rank holds of an adapter lies in the whole one: for checkpoints and for export."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from megatron.core.dist_checkpointing.mapping import (
    ReplicaId,
    ShardedTensor,
    ShardedTensorFactory,
)

from llm_train.model.shards import is_shared_out, local, rows

Index = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """`index` of a local tensor is what lies at `offset` in the whole tensor `key` of `shape`."""

    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    index: Index


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A rank's part of one or several whole tensors; `replica` tells copies of it apart.

    `pieces` are of `tensor`: the parameter, or the rows of it that this rank keeps.
    """

    name: str
    parameter: torch.nn.Parameter
    pieces: tuple[Piece, ...]
    replica: ReplicaId

    @property
    def tensor(self) -> torch.Tensor:
        """What this rank keeps, sharing its memory."""
        return local(self.parameter)


def own_rows(held: Held) -> Held:
    """Less of it, where the rows of a parameter are shared out over data-parallel ranks."""
    if not is_shared_out(held.parameter):
        return held
    kept, count = rows(held.parameter), len(held.parameter)
    parts = [_within(piece, kept, count) for piece in held.pieces]
    # The last number counts copies on data-parallel ranks, and there are none.
    (*others, _) = cast("tuple[int, ...]", held.replica)
    return replace(
        held, pieces=tuple(one for one in parts if one is not None), replica=(*others, 0)
    )


def _within(piece: Piece, kept: slice, count: int) -> Piece | None:
    """What of a piece lies in the rows `kept` of a parameter of `count` rows."""
    row, *others = piece.index
    if isinstance(row, int):
        is_kept = kept.start <= row < kept.stop
        return replace(piece, index=(row - kept.start, *others)) if is_kept else None
    start, stop, _ = row.indices(count)
    first, last = max(start, kept.start), min(stop, kept.stop)
    if first >= last:
        return None
    return replace(
        piece,
        index=(slice(first - kept.start, last - kept.start), *others),
        offset=(piece.offset[0] + first - start, *piece.offset[1:]),
    )


def runs(places: Sequence[int], whole: int) -> list[tuple[int, int, int]]:
    """(first local, first in the whole, count) of every run of neighbours; fill is left out."""
    found: list[tuple[int, int, int]] = []
    for here, place in enumerate(places):
        if place >= whole:
            continue
        if found and (last := found[-1])[0] + last[2] == here and last[1] + last[2] == place:
            found[-1] = (last[0], last[1], last[2] + 1)
        else:
            found.append((here, place, 1))
    return found


def cut_pieces(
    key: str, shape: tuple[int, ...], *, axis: int, places: Sequence[int], at: tuple[int, ...] = ()
) -> tuple[Piece, ...]:
    """Pieces of a tensor whose `axis` holds the entries `places` of the whole's.

    `at` is where the tensor lies in a stack.
    """
    found: list[Piece] = []
    for first, place, count in runs(places, shape[axis]):
        index: list[int | slice] = [*at, *(slice(None) for _ in shape)]
        index[len(at) + axis] = slice(first, first + count)
        offset = tuple(place if one == axis else 0 for one in range(len(shape)))
        found.append(Piece(key=key, shape=shape, offset=offset, index=tuple(index)))
    return tuple(found)


def described(held: Held) -> ShardedTensorFactory:
    """What megatron-core's checkpoints are told of it; its moments lie as it does."""

    def build(
        key: str, tensor: torch.Tensor, replica_id: ReplicaId, _flattened: slice | None
    ) -> dict[str, ShardedTensor]:
        prefix = key.removesuffix(held.name)
        return {
            str(number): _sharded(piece, tensor, f"{prefix}{piece.key}", replica_id)
            for number, piece in enumerate(held.pieces)
        }

    def merge(found: Mapping[str, torch.Tensor]) -> torch.Tensor:
        parts = [found[str(number)] for number in range(len(held.pieces))]
        whole = torch.zeros(held.tensor.shape, dtype=parts[0].dtype, device=parts[0].device)
        for piece, part in zip(held.pieces, parts, strict=True):
            whole[piece.index] = part
        return whole

    return ShardedTensorFactory(
        key=held.name, data=held.parameter, build_fn=build, merge_fn=merge, replica_id=held.replica
    )


def sharded(held: Held, data: torch.Tensor, *, prefix: str = "") -> list[ShardedTensor]:
    """The same of `data` in the place of `held.tensor`, in the order of its pieces."""
    return [_sharded(piece, data, f"{prefix}{piece.key}", held.replica) for piece in held.pieces]


def _sharded(piece: Piece, tensor: torch.Tensor, key: str, replica: ReplicaId) -> ShardedTensor:
    data = tensor[piece.index].detach().contiguous()
    return ShardedTensor(
        key=key,
        data=data,
        dtype=data.dtype,
        local_shape=tuple(data.shape),
        global_shape=piece.shape,
        global_offset=piece.offset,
        # Runs of rows are of any length: no grid.
        axis_fragmentations=None,
        replica_id=replica,
    )
