"""The commands on adapters: out of a Megatron folder into PEFT's form, and back."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from llm_ckpt.edge.folder import ARCH, TRACKER, arch_from_file, iteration_name, locate, read_arch
from llm_ckpt.edge.target import target_of
from llm_ckpt.errors import CheckpointError, LayoutError
from llm_ckpt.families import family_named
from llm_ckpt.formats.lora_v1 import Factors, MegatronAdapter, read_lora_v1, side_pieces
from llm_ckpt.formats.model_args import model_args
from llm_ckpt.formats.peft import (
    Adapter,
    ModuleFactors,
    WrittenConfig,
    read_adapter,
    write_adapter,
)
from llm_ckpt.formats.rank_files import CHECKPOINT_VERSION
from llm_ckpt.formats.slab import Files
from llm_ckpt.formats.stream import NewFile, write_file
from llm_ckpt.formats.torch_zip import TorchZipWriter
from llm_ckpt.lora import PartFactors, merged_factors, of_rank
from llm_ckpt.plan import Target, V1File, make_plan
from llm_ckpt.rules import Transposed
from llm_ckpt.table import Entry, Table

_SUFFIX = ".weight"


def export_lora(
    *, src: Path, output: Path, arch: Path | None, iteration: int | None, lora_alpha: float | None
) -> None:
    """A Megatron folder with low-rank factors → a PEFT folder."""
    _refuse_taken(output)
    located = locate(src, iteration=iteration)
    table = _table(read_arch(located, arch), where=src)
    adapter = read_lora_v1(located.weights, table.arch, alpha=lora_alpha)
    factors = {
        part.name.removesuffix(_SUFFIX): ModuleFactors(a=adapter.factors[name].a, b=b)
        for name in adapter.factors
        for part, b in zip(
            table.entries[name].parts, _part_factors(table, name, adapter), strict=True
        )
    }
    config = WrittenConfig(alpha=adapter.scaling * adapter.rank)
    write_adapter(output, factors, config, modules=modules_of(table))
    click.echo(f"{output}: {len(factors)} modules of rank {adapter.rank}")


def import_lora(*, adapter: Path, base: Path, output: Path, **layout: Any) -> None:
    """A PEFT folder → a Megatron v1 folder that holds the factors and nothing else."""
    _refuse_taken(output)
    target = target_of(**layout).target
    if target.layout != "v1":
        raise CheckpointError("adapters in Megatron's form are for --layout v1")
    arch = arch_from_file(base) if base.is_file() else read_arch(locate(base))
    table = _table(arch, where=base)
    found = _megatron_adapter(read_adapter(adapter), table)
    dtypes = {name: next(iter(found.factors.values())).a.dtype for name in table.entries}
    plan = make_plan(table, dtypes, target)
    folder = output / iteration_name(1)
    for file in plan.files:
        assert isinstance(file, V1File)
        _write_rank(folder, file, found, table, target, plan.padded_vocab_size)
    write_file(output / ARCH, table.arch.dumps().encode())
    write_file(output / TRACKER, b"1\n")
    click.echo(f"{output}: {len(found.factors)} parameters of rank {found.rank}")


def modules_of(table: Table) -> set[str]:
    """Every Hugging Face module with a matrix."""
    return {
        part.name.removesuffix(_SUFFIX)
        for part in table.hf_parts()
        if part.name.endswith(_SUFFIX) and len(part.shape) > 1
    }


def _table(arch: Any, *, where: Path) -> Table:
    return family_named(arch.family, where=str(where)).table(arch)


def _part_factors(table: Table, name: str, adapter: MegatronAdapter) -> tuple[Tensor, ...]:
    """B of each Hugging Face tensor of a parameter; all have its A."""
    rule = table.entries[name].rule
    if isinstance(rule, Transposed) or table.entries[name].parts[0].index is not None:
        raise CheckpointError(f"{name}: its Hugging Face tensor is no module that PEFT adapts")
    return tuple(b.contiguous() for b in rule.split(adapter.factors[name].b, table.arch))


def _megatron_adapter(adapter: Adapter, table: Table) -> MegatronAdapter:
    """All factors in one rank and one scaling: what differs is folded into B."""
    adapter, config = adapter.on(table.hf_parts()), adapter.config
    if config.use_dora or adapter.replaced or config.fan_in_fan_out:
        what = "DoRA" if config.use_dora else "replaced weights or transposed layers"
        raise CheckpointError(f"{adapter.folder}: {what} have no form in Megatron; merge instead")
    known = {part.key for part in table.hf_parts()}
    if unknown := sorted(adapter.low_rank.keys() - known):
        raise CheckpointError(f"{adapter.folder}: {unknown[0]} is not in the base")
    files, factors = Files(), dict[str, tuple[Tensor, Tensor]]()
    for name, entry in table.entries.items():
        if any(part.key in adapter.low_rank for part in entry.parts):
            if isinstance(entry.rule, Transposed):
                raise CheckpointError(
                    f"{adapter.folder}: {entry.parts[0].key} lies transposed, which has no form in "
                    "Megatron; merge instead"
                )
            factors[name] = _merged(entry, adapter, table, files)
    files.close()
    rank = max(a.shape[0] for a, _ in factors.values())
    padded = {name: Factors(*of_rank(a, b, rank)) for name, (a, b) in factors.items()}
    return MegatronAdapter(padded, 1.0)


def _merged(entry: Entry, adapter: Adapter, table: Table, files: Files) -> tuple[Tensor, Tensor]:
    parts: list[PartFactors | None] = []
    for part in entry.parts:
        low_rank = adapter.low_rank.get(part.key)
        if low_rank is None:
            parts.append(None)
            continue
        a, b, _ = low_rank.read(files)
        parts.append(PartFactors(a, b, adapter.scaling(part.key)))
    shapes = [part.shape for part in entry.parts]
    return merged_factors(entry.rule, parts, shapes, table.arch)


def _write_rank(
    folder: Path,
    file: V1File,
    adapter: MegatronAdapter,
    table: Table,
    target: Target,
    padded_vocab_size: int,
) -> None:
    with NewFile(folder / file.path) as stream:
        writer = TorchZipWriter(stream)
        states: list[dict[str, object]] = []
        for chunk in file.chunks:
            state: dict[str, object] = {}
            for tensor in chunk:
                stored = tensor.stored
                touched = [p for p in stored.pieces if p.param in adapter.factors]
                if (
                    len(stored.pieces) > len(touched) > 0
                    or any(p.rows for p in touched)
                    or (len(touched) > 1)
                ):
                    raise LayoutError(
                        f"{stored.name} holds several parameters; want --expert-layout sequential "
                        "and the megatron dialect for an adapter"
                    )
                for piece in touched:
                    param = table.entries[piece.param].param
                    for name, part in side_pieces(
                        stored.name, piece, param, adapter.factors[piece.param]
                    ):
                        kept = part.contiguous()
                        state[name] = writer.tensor([kept], kept.dtype, tuple(kept.shape))
            states.append(state)
        keys = ["model"] if len(states) == 1 else [f"model{i}" for i in range(len(states))]
        facts = model_args(
            table.arch,
            pipeline=target.pipeline,
            grid=target.grid,
            dialect=target.dialect,
            padded_vocab_size=padded_vocab_size,
            dtype=torch.float32,
        )
        facts |= {"lora_r": adapter.rank, "lora_alpha": adapter.scaling * adapter.rank}
        writer.finish(
            {
                "args": Namespace(**facts),
                "checkpoint_version": CHECKPOINT_VERSION,
                "iteration": 1,
                **dict(zip(keys, states, strict=True)),
            }
        )
        stream.commit()


def _refuse_taken(output: Path) -> None:
    if output.exists() and any(output.iterdir()):
        raise CheckpointError(f"{output}: is there already; choose another --output")
