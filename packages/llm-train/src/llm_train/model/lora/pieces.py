"""Where what a rank holds of an adapter lies in the whole one: for checkpoints and for export."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from megatron.core.dist_checkpointing.mapping import (
    ReplicaId,
    ShardedTensor,
    ShardedTensorFactory,
)

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
    """A rank's part of one or several whole tensors; `replica` tells copies of it apart."""

    name: str
    tensor: torch.nn.Parameter
    pieces: tuple[Piece, ...]
    replica: ReplicaId


def runs(places: Sequence[int], whole: int) -> list[tuple[int, int, int]]:
    """(first local, first in the whole, count) of every run of neighbours; fill is left out."""
    found: list[tuple[int, int, int]] = []
    for local, place in enumerate(places):
        if place >= whole:
            continue
        if found and (last := found[-1])[0] + last[2] == local and last[1] + last[2] == place:
            found[-1] = (last[0], last[1], last[2] + 1)
        else:
            found.append((local, place, 1))
    return found


def cut_pieces(
    key: str, shape: tuple[int, ...], *, axis: int, places: Sequence[int], at: tuple[int, ...] = ()
) -> tuple[Piece, ...]:
    """Pieces of a tensor whose `axis` holds the entries `places` of the whole's.

    `at` is where the tensor lies in a stack.
    """
    found: list[Piece] = []
    for local, place, count in runs(places, shape[axis]):
        index: list[int | slice] = [*at, *(slice(None) for _ in shape)]
        index[len(at) + axis] = slice(local, local + count)
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
        key=held.name, data=held.tensor, build_fn=build, merge_fn=merge, replica_id=held.replica
    )


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
