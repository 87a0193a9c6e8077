"""Adapters that begin as those of a PEFT folder: another run's, or peft's own."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist

from llm_train.interfaces import AdapterFactors, AdapterSource, Columns
from llm_train.model.build import Model
from llm_train.model.lora.pieces import Held, Piece
from llm_train.model.lora.tensors import SAVED, adapter_tensors, held_whole
from llm_train.model.names import base_tensors
from llm_train.model.shards import let_learn

_EMBEDDING = "embedding."
_EXPERT = re.compile(r"(\.experts\.)local_experts\.\d+\.")


class AdapterError(ValueError):
    """A PEFT folder that is not for this run."""


@dataclass(frozen=True, kw_only=True)
class FirstAdapter:
    """What a run's adapters begin as; `base_digest` is of the base they are for, if known."""

    folder: Path
    source: AdapterSource
    base_digest: str | None

    @cached_property
    def columns(self) -> Mapping[str, Columns]:
        """By name of the adapted linear, all experts of a layer being one.

        Raises AdapterError where these differ, or the modules of an expert do in scaling.
        """
        found: dict[str, Columns] = {}
        for name in self.source.names():
            linear, own = adapted_linear(name), tuple(self.source.read(name).columns)
            is_mixed = (
                _EXPERT.search(name) and len({scaling for count, scaling in own if count}) > 1
            )
            if found.setdefault(linear, own) != own or is_mixed:
                raise AdapterError(
                    f"lora.load={self.folder}: {name} has ranks and scalings {own}, another expert "
                    f"{found[linear]}; want one rank and one scaling of all experts of a layer"
                )
        return found

    def refuse_other_base(self, digest: str) -> None:
        """Raise AdapterError when it is known to be for another base than the one with `digest`."""
        if self.base_digest not in (None, digest):
            raise AdapterError(
                f"lora.load={self.folder}: is for a base with digest {self.base_digest[:12]}…, "  # pyright: ignore[reportOptionalSubscript]  # not None, or it would be among both
                f"model.load has {digest[:12]}…; want that base"
            )


def adapted_linear(name: str) -> str:
    """The linear that adapters have of a weight: the experts of a layer have one together."""
    return _EXPERT.sub(r"\1", name.removesuffix(".weight"))


@torch.no_grad()
def begin_as(chunks: Sequence[Model], first: FirstAdapter) -> None:
    """Fill attached adapters; every rank calls it. Raises AdapterError unless all have their own.

    Of modules with an A each, what lies outside their own columns of B is zero and stays so.
    """
    source = first.source
    there = {name.removesuffix(".weight") for name in source.names()} | {*source.saved_names()}
    used = set[str]()
    for chunk in chunks:
        _refuse_other_copies(chunk, first)
        for held in adapter_tensors(chunk):
            used |= {_split(piece.key)[0] for piece in held.pieces}
            _refuse_missing(held, there, first.folder)
            _fill(held, first)
    everywhere: list[set[str]] = [set()] * dist.get_world_size()
    dist.all_gather_object(everywhere, used)
    if left := sorted(there.difference(*everywhere)):
        raise AdapterError(
            f"lora.load={first.folder}: adapts or has whole {len(left)} modules that "
            f"lora.target_modules and lora.modules_to_save do not, {left[0]} the first; want all "
            "of them there"
        )


def _fill(held: Held, first: FirstAdapter) -> None:
    learns = torch.ones(held.tensor.shape, dtype=torch.bool, device=held.tensor.device)
    is_masked = False
    for piece in held.pieces:
        name, side = _split(piece.key)
        factors = None if side == SAVED else first.source.read(f"{name}.weight")
        whole = _SIDES[side](factors, name) if factors else first.source.read_whole(name)
        if tuple(whole.shape) != piece.shape:
            raise AdapterError(
                f"lora.load={first.folder}: {piece.key} has shape {tuple(whole.shape)}, this run "
                f"wants {piece.shape}"
            )
        mine = held.tensor[piece.index]
        place = _place(piece, mine)
        mine.copy_(whole[place])
        if side == "lora_B" and factors is not None and factors.learns is not None:
            learns[piece.index] = factors.learns[place].to(learns.device)
            is_masked = True
    if is_masked:
        let_learn(held.parameter, learns)


def _refuse_missing(held: Held, there: set[str], folder: Path) -> None:
    for piece in held.pieces:
        name, side = _split(piece.key)
        if name not in there:
            has, option = "no adapter of", "lora.target_modules"
            if side == SAVED:
                has, option = "not whole", "lora.modules_to_save"
            raise AdapterError(f"lora.load={folder}: has {has} {name}, which {option} names")


def _refuse_other_copies(chunk: Model, first: FirstAdapter) -> None:
    """What peft keeps of a table beside its adapter is the base's; a grown one would not be."""
    copies = {*first.source.copied_names()}
    for named in base_tensors(chunk):
        if named.name not in copies:
            continue
        held, whole = held_whole(named, chunk), first.source.read_whole(named.name)
        for piece in held.pieces:
            mine = held.tensor[piece.index]
            if not torch.equal(mine, whole[_place(piece, mine)].to(mine)):
                raise AdapterError(
                    f"lora.load={first.folder}: has another {named.name} than model.load; want "
                    "the base that it was trained on"
                )


def _place(piece: Piece, mine: torch.Tensor) -> tuple[slice, ...]:
    """Where a piece lies in the whole tensor."""
    return tuple(
        slice(start, start + count) for start, count in zip(piece.offset, mine.shape, strict=True)
    )


def _split(key: str) -> tuple[str, str]:
    name, _, side = key.rpartition(".")
    return name, side


def _a(factors: AdapterFactors, name: str) -> torch.Tensor:
    return factors.b.t() if name.startswith(_EMBEDDING) else factors.a


def _b(factors: AdapterFactors, name: str) -> torch.Tensor:
    return factors.a.t() if name.startswith(_EMBEDDING) else factors.b


def _lengths(factors: AdapterFactors, _name: str) -> torch.Tensor:
    return cast("torch.Tensor", factors.lengths)


_SIDES: Mapping[str, Callable[[AdapterFactors, str], torch.Tensor]] = {
    "lora_A": _a,
    "lora_B": _b,
    "lora_magnitude": _lengths,
}
