"""First weights of a model: from a weight source, or random, the same at every layout."""

import hashlib
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from llm_train.interfaces import WeightSource
from llm_train.model.build import Model
from llm_train.model.names import NamedTensor, base_tensors
from llm_train.model.shards import put


class WeightsError(ValueError):
    """Weights and model do not fit each other."""


Put = Callable[[torch.Tensor, torch.Tensor], None]
"""Gives a parameter (or what stands for it) the values of a tensor of its shape."""


@torch.no_grad()
def fill_from_source(
    chunks: Sequence[Model], source: WeightSource, *, padded_rows: int, put: Put = put
) -> None:
    """Read this rank's slice of every tensor but adapters.

    One is read and put in its place before the next. Every tensor of the source must be used by
    some rank. Raises WeightsError naming missing, left-over and misshapen tensors.
    """
    there, used = set(source.names()), set[str]()
    for named in (named for chunk in chunks for named in base_tensors(chunk)):
        if named.name not in there:
            near = ", ".join(sorted(there)[:5])
            raise WeightsError(f"{named.name}: not among the {len(there)} weights ({near}, …)")
        piece = source.read(named.name, named.shard, padded_vocab_size=padded_rows)
        if piece.shape != named.tensor.shape:
            raise WeightsError(
                f"{named.name}: shard {named.shard} has shape {tuple(piece.shape)}, "
                f"the model wants {tuple(named.tensor.shape)}"
            )
        put(named.tensor, piece)
        used.add(named.name)
    _refuse_leftovers(there, used)


@torch.no_grad()
def fill_randomly(chunks: Sequence[Model], *, std: float, seed: int, put: Put = put) -> None:
    """Normal(0, std) matrices, norms and biases as built; seeded by name, so no layout matters.

    A parameter's own `init_std` goes before `std`.
    """
    for named in (named for chunk in chunks for named in base_tensors(chunk)):
        if named.tensor.dim() < 2:
            continue
        generator = torch.Generator().manual_seed(name_seed(named.name, seed))
        own_std = getattr(named.tensor, "init_std", std)
        put(named.tensor, _cut(_full(named, own_std, generator), named))


def name_seed(name: str, seed: int) -> int:
    """A seed of a tensor's own, whatever layout draws it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "little")


def _full(named: NamedTensor, std: float, generator: torch.Generator) -> torch.Tensor:
    shape = list(named.tensor.shape)
    if _is_cut(named):
        shape[named.tensor.partition_dim] *= named.shard[1]  # pyright: ignore[reportAttributeAccessIssue]
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def _is_cut(named: NamedTensor) -> bool:
    return named.shard[1] > 1 and getattr(named.tensor, "partition_dim", -1) >= 0


def cut_places(named: NamedTensor) -> list[int]:
    """Where the entries of a parameter's cut axis lie in the whole one's, in this rank's order."""
    axis = getattr(named.tensor, "partition_dim", -1)
    assert axis >= 0, f"{named.name} is not cut"
    size = named.tensor.shape[axis] * named.shard[1]
    shape = [size if one == axis else 1 for one in range(named.tensor.dim())]
    return _cut(torch.arange(size).view(shape), named).flatten().tolist()


def _cut(full: torch.Tensor, named: NamedTensor) -> torch.Tensor:
    """The rank's piece; a gate-and-up matrix (partition_stride 2) is cut in each half.

    Rows of several kinds (`sections`) are cut in each kind.
    """
    if not _is_cut(named):
        return full
    rank, size = named.shard
    axis = named.tensor.partition_dim  # pyright: ignore[reportAttributeAccessIssue]
    stride = named.tensor.partition_stride  # pyright: ignore[reportAttributeAccessIssue]
    sections = getattr(named.tensor, "sections", None)
    parts = full.chunk(stride, axis) if sections is None else full.split(sections, axis)
    return torch.cat([part.chunk(size, axis)[rank] for part in parts], axis)


def _refuse_leftovers(there: set[str], used: set[str]) -> None:
    everywhere: list[set[str]] = [set()] * dist.get_world_size()
    dist.all_gather_object(everywhere, used)
    left = sorted(there.difference(*everywhere))
    if left:
        raise WeightsError(
            f"{len(left)} weights have no place in the model: {', '.join(left[:5])}"
            + (", …" if len(left) > 5 else "")
        )
