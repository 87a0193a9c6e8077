"""A checkpoint of any format with an adapter merged into it, parameter by parameter, as it is read.

The base is only read. A parameter that the adapter touches is split into its Hugging Face tensors,
each is adapted in fp32 and rounded once, and they are merged again.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from llm_ckpt.blocks import Param
from llm_ckpt.errors import CheckpointError, first_few, suggest
from llm_ckpt.formats.peft import Adapter, LowRank
from llm_ckpt.formats.slab import Files
from llm_ckpt.layout import FULL, Shape, Shard, cut, whole
from llm_ckpt.lora import adapted
from llm_ckpt.table import Part, Table
from llm_ckpt.tensors import Tensors


class AdaptedTensors:
    """The tensors of a checkpoint with an adapter merged in."""

    def __init__(self, base: Tensors, adapter: Adapter, table: Table) -> None:
        self._base, self._adapter, self._table, self._files = base, adapter, table, Files()
        parts = {part.name: part for part in table.hf_parts()}
        _check_names(adapter, parts)
        for name, low_rank in adapter.low_rank.items():
            _check_low_rank(adapter, parts[name], low_rank)
        for name, slab in adapter.replaced.items():
            _check_shape(adapter, parts[name], slab.shape)

    def dtype(self, name: str) -> torch.dtype:
        """The base's."""
        return self._base.dtype(name)

    def read(self, param: Param, shard: Shard, padded: Shape) -> Tensor:
        """The base's piece, or the piece of the whole adapted parameter."""
        entry = self._table.entries[param.name]
        if not any(part.name in self._adapter.names() for part in entry.parts):
            return self._base.read(param, shard, padded)
        arch = self._table.arch
        tensors = entry.rule.split(self._base.read(param, FULL, param.shape), arch)
        changed = map(self._adapted, entry.parts, tensors)
        merged = entry.rule.merge(list(changed), arch)
        if padded != param.shape:
            filling = merged.new_zeros(padded[0] - param.shape[0], *padded[1:])
            merged = torch.cat([merged, filling])
        return cut(merged, param.cut, shard, where=param.name).contiguous()

    def close(self) -> None:
        """Close files."""
        self._files.close()
        self._base.close()

    def _adapted(self, part: Part, weight: Tensor) -> Tensor:
        if part.name in self._adapter.replaced:
            slab = self._adapter.replaced[part.name]
            saved = torch.empty(slab.shape, dtype=slab.dtype)
            self._files.read(slab, whole(slab.shape), saved)
            weight = saved.to(weight.dtype)
        low_rank = self._adapter.low_rank.get(part.name)
        if low_rank is None:
            return weight
        a, b, magnitude = low_rank.read(self._files)
        config = self._adapter.config
        return adapted(
            weight,
            a,
            b,
            scaling=config.scaling(part.name.removesuffix(".weight"), a.shape[0]),
            magnitude=magnitude,
            is_transposed=config.fan_in_fan_out and not low_rank.is_embedding,
        )


def _check_names(adapter: Adapter, known: Iterable[str]) -> None:
    unknown = sorted(adapter.names() - set(known))
    if unknown:
        raise CheckpointError(
            f"{adapter.folder}: {len(unknown)} of {len(adapter.names())} adapted weights are not "
            f"in the base: {first_few(unknown)}{suggest(unknown[0], known)}"
        )


def _check_low_rank(adapter: Adapter, part: Part, low_rank: LowRank) -> None:
    a, b = low_rank.a.shape, low_rank.b.shape
    found = (a[1], b[0]) if low_rank.is_embedding else (b[0], a[1])
    if adapter.config.fan_in_fan_out and not low_rank.is_embedding:
        found = found[::-1]
    _check_shape(adapter, part, found)


def _check_shape(adapter: Adapter, part: Part, found: Shape) -> None:
    if found != part.stored_shape:
        raise CheckpointError(
            f"{adapter.folder}: {part.name}: the adapter is for {list(found)}, the base has "
            f"{list(part.stored_shape)}"
        )
