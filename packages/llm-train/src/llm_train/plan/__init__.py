"""What a run will need, before it starts: placement, parameters, memory, operations, idle time."""

from __future__ import annotations

from dataclasses import dataclass

from llm_train import check
from llm_train.arch import Arch
from llm_train.config import RunConfig
from llm_train.flops import training_flops
from llm_train.placement import Chunk, chunks
from llm_train.plan.adapters import stage_adapters
from llm_train.plan.memory import Memory, learning, stage_memory
from llm_train.plan.parameters import Kind, Parameters, stage_parameters

__all__ = ["Kind", "Memory", "Parameters", "Plan", "make_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run on its ranks. `parameters` and `memory` have an entry a stage, of one rank of it.

    `flops_per_token` are those of forward and backward; `bubble` is the part of a step in which a
    stage has nothing to do. `trained_parameters` are those of the whole model that change.
    """

    layout: check.Layout
    chunks: tuple[Chunk, ...]
    parameters: tuple[tuple[Parameters, ...], ...]
    memory: tuple[Memory, ...]
    trained_parameters: int
    active_parameters: int
    flops_per_token: float
    bubble: float

    @property
    def total_parameters(self) -> int:
        """Of the whole model, each weight once."""
        held = [one for stage in self.parameters for one in stage]
        return sum(one.total for one in held if not one.is_copy)

    @property
    def flops_per_step(self) -> float:
        """Of all ranks together."""
        return self.flops_per_token * self.layout.tokens_per_step


def make_plan(config: RunConfig, arch: Arch, world_size: int) -> Plan:
    """Plan a run that `check.problems` finds no fault with."""
    parallel = config.parallel
    layout = check.layout(config, world_size)
    vocab_rows = -(-arch.vocab_size // parallel.tp) * parallel.tp
    held = stage_parameters(arch, parallel, vocab_rows=vocab_rows)
    if config.lora is not None:
        placed = chunks(parallel, arch.num_layers)
        layers_of = [
            [layer for one in placed if one.stage == stage for layer in one.layers]
            for stage in range(parallel.pp)
        ]
        trained = stage_adapters(arch, parallel, config.lora, layers_of)
        held = [[*base, *more] for base, more in zip(held, trained, strict=True)]
    return Plan(
        layout=layout,
        chunks=chunks(parallel, arch.num_layers),
        parameters=tuple(tuple(stage) for stage in held),
        memory=tuple(stage_memory(config, arch, layout, held, vocab_rows=vocab_rows)),
        trained_parameters=_trained(config, held),
        active_parameters=_active(arch, held),
        flops_per_token=training_flops(
            arch,
            config.train.seq_length,
            is_indexer_frozen=config.train.indexer_loss_coeff == 0.0,
            is_frozen=config.lora is not None,
        ),
        bubble=bubble(parallel.pp, parallel.vpp or 1, layout.micro_batches),
    )


def bubble(pp: int, vpp: int, micro_batches: int) -> float:
    """(pp − 1) / (m · vpp + pp − 1): arXiv 2104.04473, section 2.2, as a part of the whole step."""
    return (pp - 1) / (micro_batches * vpp + pp - 1)


def _trained(config: RunConfig, held: list[list[Parameters]]) -> int:
    """Each weight once."""
    learned = [one for stage in held for one in learning(config, stage)]
    return sum(one.total for one in learned if not one.is_copy)


def _active(arch: Arch, held: list[list[Parameters]]) -> int:
    """Parameters that one token meets: of the experts, only those it is sent to."""
    share = arch.moe.top_k / arch.moe.experts if arch.moe is not None else 1.0
    found = [one for stage in held for one in stage if not one.is_copy]
    return round(sum(one.total * (share if one.is_expert else 1) for one in found))
