"""Adapters of a training run as PEFT folders: what `llm_train.adapters` names."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from llm_ckpt.arch import parse_arch
from llm_ckpt.edge.adapters import modules_of
from llm_ckpt.errors import CheckpointError
from llm_ckpt.families import family_named
from llm_ckpt.formats.peft import ModuleFactors, Together, WrittenConfig, write_adapter
from llm_ckpt.lora import of_rank
from llm_ckpt.rules import Transposed
from llm_ckpt.stacked_experts import FAMILIES, Stacked, is_taken_for_experts, join, stacked
from llm_ckpt.table import Table

_SUFFIX = ".weight"
_EXPERTS = ".experts."
_EMBEDDING = "embedding.word_embeddings.weight"

Factors = tuple[Tensor, Tensor, Tensor | None]
Columns = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class _Own:
    """A [rank, in], B [out, rank] and the factor of B·A of one module; None = the folder's."""

    a: Tensor
    b: Tensor
    scaling: float | None


def export_adapter(
    factors: Mapping[str, Factors],
    *,
    arch: Mapping[str, object],
    rank: int,
    alpha: float,
    use_rslora: bool,
    dropout: float,
    base: str | None,
    output: Path,
    columns: Mapping[str, Columns] = MappingProxyType({}),
    saved: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write a PEFT folder `output`, whole or not at all; one that is there is replaced.

    `factors`: by megatron-core's name of a weight [out, in] its A [rank, in], B [out, rank] and,
    for DoRA, the lengths of the adapted rows [out], of an embedding of its columns [in]. Tensors
    that share a weight share its A, of `rank` rows, unless `columns` has more for that weight: how
    many rows of A are of each of them, and what B·A is multiplied by there; or, of all of them
    together, once. `saved` are weights that trained whole, by megatron-core's names.
    """
    model = parse_arch(dict(arch), where="arch.json")
    table = family_named(model.family, where="arch.json").table(model)
    stacks = {name: where for name in factors if (where := _stack(table, name)) is not None}
    modules = {
        module: one
        for name, parts in factors.items()
        if name not in stacks
        for module, one in _modules(table, name, parts, columns.get(name)).items()
    }
    together = _together(table, factors, stacks, columns)
    temporary = output.with_name(f".writing_{output.name}")
    if temporary.exists():
        shutil.rmtree(temporary)
    is_dora = any(lengths is not None for _, _, lengths in factors.values())
    plain = {
        module
        for module in modules
        if model.family in FAMILIES and is_taken_for_experts(module) and not is_dora
    }
    config = WrittenConfig(
        alpha=alpha,
        use_rslora=use_rslora,
        # peft has no dropout of parameters; it is for training alone.
        dropout=0.0 if together or plain else dropout,
        base=base,
    )
    if use_rslora and any(_EXPERTS in name for name in factors):
        # peft joins gate and up of experts to twice the rank and alpha, which is right without.
        config = replace(config, alpha=alpha * math.sqrt(rank), use_rslora=False)
    together_by = Together(
        factors=together, experts=0 if model.moe is None else model.moe.experts, plain=plain
    )
    write_adapter(
        temporary,
        modules,
        config,
        modules=modules_of(table),
        rank=rank,
        parameters=together_by,
        saved=_saved(table, saved),
    )
    if output.exists():
        shutil.rmtree(output)
    temporary.rename(output)


def _saved(table: Table, saved: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """By the names of the Hugging Face tensors that they are made of."""
    found: dict[str, Tensor] = {}
    for name, tensor in saved.items():
        entry = table.entries[name]
        if entry.parts[0].index is not None:
            raise CheckpointError(f"{name}: its Hugging Face tensor is no module that PEFT saves")
        parts = entry.rule.split(tensor, table.arch)
        found |= {part.name: one for part, one in zip(entry.parts, parts, strict=True)}
    return found


def _stack(table: Table, name: str) -> Stacked | None:
    """Which expert of a parameter of transformers a weight is; None when it is of none."""
    part = table.entries[name].parts[0]
    is_stack = part.index is not None or table.arch.family in FAMILIES
    return stacked(part) if is_stack else None


def _together(
    table: Table,
    factors: Mapping[str, Factors],
    stacks: Mapping[str, Stacked],
    columns: Mapping[str, Columns],
) -> Mapping[str, ModuleFactors]:
    """The adapters of the parameters of transformers that hold whole layers' experts."""
    found: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    scalings: dict[str, float] = {}
    for name, where in stacks.items():
        rule, (a, b, _) = table.entries[name].rule, factors[name]
        # Rows of B are those of an [out, in] tensor, whichever way it lies.
        rows = (rule.rule if isinstance(rule, Transposed) else rule).split(b, table.arch)
        found.setdefault(where.parameter, {})[where.expert] = a, torch.cat(rows)
        for _, scaling in columns.get(name, ()):
            if scalings.setdefault(where.parameter, scaling) != scaling:
                raise CheckpointError(
                    f"{name}: its B·A is multiplied by {scaling}, others of {where.parameter} by "
                    f"{scalings[where.parameter]}; PEFT has one for all"
                )
    joined = {
        name: join(_of_one_rank([own[expert] for expert in sorted(own)]))
        for name, own in sorted(found.items())
    }
    return {
        name: ModuleFactors(a=a.contiguous(), b=b, scaling=scalings.get(name))
        for name, (a, b) in joined.items()
    }


def _of_one_rank(experts: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Where gate and up have an A each, its rank is theirs together."""
    rank = max(a.shape[0] for a, _ in experts)
    return [of_rank(a, b, rank) for a, b in experts]


def _modules(
    table: Table, name: str, factors: Factors, columns: Columns | None
) -> dict[str, ModuleFactors]:
    """The adapters of the Hugging Face modules that a parameter is made of."""
    entry, (a, b, lengths) = table.entries[name], factors
    if isinstance(entry.rule, Transposed) or entry.parts[0].index is not None:
        raise CheckpointError(f"{name}: its Hugging Face tensor is no module that PEFT adapts")
    rows = entry.rule.split(b, table.arch)
    if lengths is None:
        scales: list[Tensor | None] = [None] * len(rows)
    elif name == _EMBEDDING:
        scales = [lengths]
    else:
        scales = [one[:, 0].contiguous() for one in entry.rule.split(lengths[:, None], table.arch)]
    own = [_Own(a, row, None) for row in rows] if columns is None else _own(a, rows, columns)
    return {
        part.name.removesuffix(_SUFFIX): ModuleFactors(
            a=one.a,
            b=one.b.contiguous(),
            magnitude=scale,
            is_embedding=name == _EMBEDDING,
            scaling=one.scaling,
        )
        for part, one, scale in zip(entry.parts, own, scales, strict=True)
        # A module that had no adapter has none.
        if len(one.a)
    }


def _own(a: Tensor, rows: Sequence[Tensor], columns: Columns) -> list[_Own]:
    """What each module has, out of one A of all (llm_ckpt.edge.adapter_source)."""
    if len(columns) == 1:
        return [_Own(a, row, columns[0][1]) for row in rows]
    ends = list(accumulate(count for count, _ in columns))
    found: list[_Own] = []
    for row, (count, scaling), end in zip(rows, columns, ends, strict=True):
        block = slice(end - count, end)
        found.append(_Own(a[block].contiguous(), row[:, block], scaling))
    return found
