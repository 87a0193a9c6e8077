"""Which parameters train, and how fast: globs of a config over names in the whole model."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist

from llm_train.model.build import Model
from llm_train.model.names import named_tensors

SCALE = "lr_scale"


class SelectionError(ValueError):
    """A glob that matches no parameter."""


def freeze(chunks: Sequence[Model], globs: Sequence[str]) -> None:
    """Let what matches not train.

    Raises SelectionError for a glob without a match on any rank, or where nothing is left to train.
    """
    _refuse_unmatched("optimizer.frozen", globs, chunks)
    for chunk in chunks:
        for named in named_tensors(chunk):
            if any(fnmatch.fnmatchcase(named.name, one) for one in globs):
                named.tensor.requires_grad_(False)
    learning = sum(p.requires_grad for chunk in chunks for p in chunk.parameters())
    everywhere = [0] * dist.get_world_size()
    dist.all_gather_object(everywhere, learning)
    if globs and not any(everywhere):
        raise SelectionError(
            f"optimizer.frozen: {', '.join(globs)} match every parameter; want some left to train"
        )


def mark_rates(chunks: Sequence[Model], scales: Mapping[str, float]) -> None:
    """Note on each parameter the factor of its learning rate, that of the first glob it matches.

    Raises SelectionError for a glob without a match on any rank.
    """
    _refuse_unmatched("optimizer.lr_scales", scales, chunks)
    for chunk in chunks:
        for named in named_tensors(chunk):
            found = (v for glob, v in scales.items() if fnmatch.fnmatchcase(named.name, glob))
            if (scale := next(found, None)) is not None:
                setattr(named.tensor, SCALE, scale)


def scale_of(parameter: torch.Tensor) -> float | None:
    """The factor noted on a parameter; None = the run's own rate."""
    return getattr(parameter, SCALE, None)


def _refuse_unmatched(key: str, globs: Iterable[str], chunks: Sequence[Model]) -> None:
    wanted = list(globs)
    if not wanted:
        return
    mine = {named.name for chunk in chunks for named in named_tensors(chunk)}
    everywhere: list[set[str]] = [set()] * dist.get_world_size()
    dist.all_gather_object(everywhere, mine)
    names = sorted(set[str]().union(*everywhere))
    for glob in wanted:
        if not any(fnmatch.fnmatchcase(name, glob) for name in names):
            shown = ", ".join(names[:3])
            raise SelectionError(
                f"{key}: {glob!r} matches none of the {len(names)} parameters ({shown}, …)"
            )
