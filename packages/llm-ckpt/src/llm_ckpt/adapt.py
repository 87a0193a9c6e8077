"""A checkpoint of any format with an adapter merged into it, parameter by parameter, as it is read.

The base is only read. A PEFT adapter changes Hugging Face tensors, so a parameter is split into
those first; a Megatron one changes parameters as they are. In fp32, rounded once.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from llm_ckpt.blocks import Param
from llm_ckpt.errors import CheckpointError, first_few, suggest
from llm_ckpt.formats.lora_v1 import MegatronAdapter
from llm_ckpt.formats.peft import Adapter, LowRank
from llm_ckpt.formats.slab import Files
from llm_ckpt.layout import FULL, Shape, Shard, cut, whole
from llm_ckpt.lora import adapted
from llm_ckpt.rules import Transposed
from llm_ckpt.table import Entry, Part, Table
from llm_ckpt.tensors import Tensors


class Change(Protocol):
    """What an adapter does to parameters."""

    def touches(self, entry: Entry) -> bool:
        """Whether it changes this one."""
        ...

    def changed(self, entry: Entry, weight: Tensor) -> Tensor:
        """The whole parameter, changed."""
        ...

    def close(self) -> None:
        """Close files."""
        ...


class AdaptedTensors:
    """The tensors of a checkpoint with a change applied."""

    def __init__(self, base: Tensors, change: Change, table: Table) -> None:
        self._base, self._change, self._table = base, change, table

    def dtype(self, name: str) -> torch.dtype:
        """The base's."""
        return self._base.dtype(name)

    def read(self, param: Param, shard: Shard, padded: Shape) -> Tensor:
        """The base's piece, or the piece of the whole changed parameter."""
        entry = self._table.entries[param.name]
        if not self._change.touches(entry):
            return self._base.read(param, shard, padded)
        changed = self._change.changed(entry, self._base.read(param, FULL, param.shape))
        if padded != param.shape:
            filling = changed.new_zeros(padded[0] - param.shape[0], *padded[1:])
            changed = torch.cat([changed, filling])
        return cut(changed, param.cut, shard, where=param.name).contiguous()

    def close(self) -> None:
        """Close files."""
        self._change.close()
        self._base.close()


class PeftChange:
    """A PEFT adapter, on the Hugging Face tensors that parameters are made of."""

    def __init__(self, adapter: Adapter, table: Table) -> None:
        adapter = adapter.on(table.hf_parts())
        self._adapter, self._arch, self._files = adapter, table.arch, Files()
        parts = {part.key: part for part in table.hf_parts()}
        _check_names(adapter, parts)
        for name, low_rank in adapter.low_rank.items():
            _check_low_rank(adapter, parts[name], low_rank)
        for name, slab in adapter.replaced.items():
            _check_shape(adapter, parts[name], slab.shape)

    def touches(self, entry: Entry) -> bool:
        """Whether any of its tensors is adapted or replaced."""
        return any(part.key in self._adapter.names() for part in entry.parts)

    def changed(self, entry: Entry, weight: Tensor) -> Tensor:
        """Split, change each tensor, merge."""
        tensors = entry.rule.split(weight, self._arch)
        is_transposed = isinstance(entry.rule, Transposed)
        changed = [
            self._adapted(part, one, is_transposed=is_transposed)
            for part, one in zip(entry.parts, tensors, strict=True)
        ]
        return entry.rule.merge(changed, self._arch)

    def close(self) -> None:
        """Close files."""
        self._files.close()

    def _adapted(self, part: Part, weight: Tensor, *, is_transposed: bool) -> Tensor:
        if part.key in self._adapter.replaced:
            slab = self._adapter.replaced[part.key]
            saved = torch.empty(slab.shape, dtype=slab.dtype)
            self._files.read(slab, whole(slab.shape), saved)
            weight = saved.to(weight.dtype)
        low_rank = self._adapter.low_rank.get(part.key)
        if low_rank is None:
            return weight
        a, b, magnitude = low_rank.read(self._files)
        return adapted(
            weight,
            a,
            b,
            scaling=self._adapter.scaling(part.key),
            magnitude=magnitude,
            is_transposed=is_transposed
            if low_rank.which is not None
            else self._adapter.config.fan_in_fan_out and not low_rank.is_embedding,
            is_embedding=low_rank.is_embedding,
        )


Replace = Callable[[str, Tensor], Tensor]
"""By a parameter's name and its whole value, what stands in its place."""


class Replaced:
    """Whatever a function makes of parameters."""

    def __init__(self, replace: Replace) -> None:
        self._replace = replace

    def touches(self, entry: Entry) -> bool:
        """The function is asked for all."""
        del entry
        return True

    def changed(self, entry: Entry, weight: Tensor) -> Tensor:
        """In the dtype that the checkpoint has."""
        return self._replace(entry.param.name, weight).to(weight.dtype)

    def close(self) -> None:
        """Nothing is open."""


class MegatronChange:
    """An adapter of Megatron parameters."""

    def __init__(self, adapter: MegatronAdapter) -> None:
        self._adapter = adapter

    def touches(self, entry: Entry) -> bool:
        """Whether it has factors for it."""
        return entry.param.name in self._adapter.factors

    def changed(self, entry: Entry, weight: Tensor) -> Tensor:
        """The weight plus the scaled product of its factors."""
        factors = self._adapter.factors[entry.param.name]
        return adapted(weight, factors.a, factors.b, scaling=self._adapter.scaling)

    def close(self) -> None:
        """Nothing is open."""


def _check_names(adapter: Adapter, known: Mapping[str, Part]) -> None:
    unknown = sorted(adapter.names() - known.keys())
    if unknown:
        raise CheckpointError(
            f"{adapter.folder}: {len(unknown)} of {len(adapter.names())} adapted weights are not "
            f"in the base: {first_few(unknown)}{suggest(unknown[0], known)}"
        )


def _check_low_rank(adapter: Adapter, part: Part, low_rank: LowRank) -> None:
    found = low_rank.shape
    if adapter.config.fan_in_fan_out and not low_rank.is_embedding:
        found = found[::-1]
    if low_rank.which is None:
        _check_shape(adapter, part, found)
    # Files have them as [out, in] or [in, out].
    elif found not in (part.shape, part.shape[::-1]):
        raise CheckpointError(
            f"{adapter.folder}: {part.key}: the adapter is for {list(found)}, the base has "
            f"{list(part.shape)}"
        )


def _check_shape(adapter: Adapter, part: Part, found: Shape) -> None:
    if found != part.stored_shape:
        raise CheckpointError(
            f"{adapter.folder}: {part.name}: the adapter is for {list(found)}, the base has "
            f"{list(part.stored_shape)}"
        )
