"""Adapters of a training run as PEFT folders: what `llm_train.adapters` names."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from llm_ckpt.arch import parse_arch
from llm_ckpt.edge.adapters import modules_of
from llm_ckpt.errors import CheckpointError
from llm_ckpt.families import family_named
from llm_ckpt.formats.peft import ModuleFactors, WrittenConfig, write_adapter
from llm_ckpt.rules import Transposed
from llm_ckpt.table import Table

_SUFFIX = ".weight"
_EMBEDDING = "embedding.word_embeddings.weight"

Factors = tuple[Tensor, Tensor, Tensor | None]


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
) -> None:
    """Write a PEFT folder `output`, whole or not at all; one that is there is replaced.

    `factors`: by megatron-core's name of a weight [out, in] its A [rank, in], B [out, rank] and,
    for DoRA, the lengths of the adapted rows [out]. Tensors that share a weight share its A,
    unless that has `rank` rows for each of them.
    """
    model = parse_arch(dict(arch), where="arch.json")
    table = family_named(model.family, where="arch.json").table(model)
    modules = {
        module: one
        for name, parts in factors.items()
        for module, one in _modules(table, name, parts, rank=rank).items()
    }
    temporary = output.with_name(f".writing_{output.name}")
    if temporary.exists():
        shutil.rmtree(temporary)
    config = WrittenConfig(alpha=alpha, use_rslora=use_rslora, dropout=dropout, base=base)
    write_adapter(temporary, modules, config, modules=modules_of(table))
    if output.exists():
        shutil.rmtree(output)
    temporary.rename(output)


def _modules(table: Table, name: str, factors: Factors, *, rank: int) -> dict[str, ModuleFactors]:
    """The adapters of the Hugging Face modules that a parameter is made of."""
    entry, (a, b, lengths) = table.entries[name], factors
    if isinstance(entry.rule, Transposed) or entry.parts[0].index is not None:
        raise CheckpointError(f"{name}: its Hugging Face tensor is no module that PEFT adapts")
    rows = entry.rule.split(b, table.arch)
    scales = (
        [None] * len(rows)
        if lengths is None
        else [one[:, 0].contiguous() for one in entry.rule.split(lengths[:, None], table.arch)]
    )
    each = [(a, row) for row in rows] if a.shape[0] == rank else _own(a, rows, rank=rank)
    return {
        part.name.removesuffix(_SUFFIX): ModuleFactors(
            a=own, b=row.contiguous(), magnitude=scale, is_embedding=name == _EMBEDDING
        )
        for part, (own, row), scale in zip(entry.parts, each, scales, strict=True)
        # A module that had no adapter has neither.
        if own.any() or row.any()
    }


def _own(a: Tensor, rows: Sequence[Tensor], *, rank: int) -> list[tuple[Tensor, Tensor]]:
    """A and B of each module, out of one A of all (llm_ckpt.edge.adapter_source)."""
    blocks = [slice(index * rank, (index + 1) * rank) for index in range(len(rows))]
    return [(a[block].contiguous(), row[:, block]) for block, row in zip(blocks, rows, strict=True)]
