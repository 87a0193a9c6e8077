"""Options of the command line → the layout that is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import click
import torch

from llm_ckpt.arch import Arch
from llm_ckpt.errors import CheckpointError
from llm_ckpt.formats.dialects import Dialect
from llm_ckpt.placement import Grid, Pipeline
from llm_ckpt.plan import Target

# Options that only v1 has a use for, with what they are when they are not given.
V1_ONLY: Mapping[str, object] = {
    "tp": 1,
    "pp": 1,
    "ep": 1,
    "etp": None,
    "vpp": 1,
    "layers_per_chunk": None,
    "num_layer_list": None,
    "noop_layers": None,
    "schedule": "interleaved",
    "moe_tp_extend_ep": False,
    "dialect": "megatron",
    "expert_layout": "sequential",
    "transformer_impl": "local",
    "mla_mm_split": False,
    "make_vocab_size_divisible_by": 128,
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """A target, and what to tell about options that change nothing."""

    target: Target
    notes: tuple[str, ...] = ()


def target_of(
    *,
    to: str,
    layout: str | None,
    cp: int,
    dtype: str | None,
    per_layer_keys: bool,
    no_optimizer: bool,
    **options: Any,
) -> Chosen:
    """An option that the layout would ignore is a usage error."""
    chosen = "hf" if to == "hf" else layout or "v1"
    if to == "hf" and layout:
        raise click.UsageError("--layout is for --to mcore")
    given = [name for name, default in V1_ONLY.items() if options[name] != default]
    if chosen != "v1" and given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(
            f"{chosen} has no parallel layout and no dialect: {names} is for --layout v1"
            if len(given) == 1
            else f"{chosen} has no parallel layout and no dialect: {names} are for --layout v1"
        )
    if chosen != "v2" and per_layer_keys:
        raise click.UsageError("--per-layer-keys is for --layout v2")
    target = Target(
        layout=cast("Any", chosen),
        grid=Grid(
            tp=options["tp"],
            ep=options["ep"],
            etp=options["etp"],
            tp_extends_ep=options["moe_tp_extend_ep"],
        ),
        pipeline=_pipeline(options),
        dialect=Dialect(
            name=options["dialect"],
            implementation=options["transformer_impl"],
            experts=options["expert_layout"],
            splits_mla=options["mla_mm_split"],
        ),
        vocab_multiple=options["make_vocab_size_divisible_by"],
        is_per_layer=per_layer_keys,
        keeps_optimizer=not no_optimizer,
        dtype=getattr(torch, dtype) if dtype else None,
    )
    notes = ("--cp: context parallelism divides no weight; every file is the same",)
    return Chosen(target, notes if cp > 1 else ())


def check_expected(expected: Mapping[str, int], arch: Arch, *, where: str) -> None:
    """Refuse old options that say something else than the source's configuration."""
    dense = 0
    for run in arch.each_layer():
        if run.feed_forward == "moe":
            break
        dense += 1
    found = {
        "num_layers": arch.num_layers,
        "first_k_dense_replace": dense,
        "mtp_num_layers": arch.mtp.layers if arch.mtp else 0,
    }
    for name, value in expected.items():
        if name in found and found[name] != value:
            raise CheckpointError(
                f"{where}: {name} is {found[name]}, --{name.replace('_', '-')} says {value}; "
                "a conversion keeps every layer"
            )


def _pipeline(options: Mapping[str, Any]) -> Pipeline:
    return Pipeline(
        pp=options["pp"],
        vpp=options["vpp"],
        layers_per_stage=options["num_layer_list"],
        noop_layers=options["noop_layers"] or (),
        schedule=options["schedule"],
        layers_per_chunk=options["layers_per_chunk"],
    )
