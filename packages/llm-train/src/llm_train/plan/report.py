"""A plan as people read it, in tables of plain text, and as one JSON document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby

from llm_train.placement import Chunk
from llm_train.plan import Kind, Memory, Parameters, Plan

_GIB = 2**30
_MIB = 2**20


def report(plan: Plan) -> str:
    """The whole plan."""
    layout = plan.layout
    lines = [
        "layers of each stage (E embedding, numbers layers, . noop, H head and loss)",
        *_picture(plan.chunks),
        "",
        "parameters, of the model and of one rank of each stage",
        *_parameters(plan),
        "",
        f"memory of one rank of each stage, {_unit(plan.memory)[0]}",
        *_memory(plan.memory),
        "",
        f"operations: {plan.flops_per_token:.4g} FLOPs a token, {plan.flops_per_step:.4g} a step "
        f"of {layout.tokens_per_step} tokens (forward and backward: 6 for each weight that a token "
        "meets, and attention over the keys that it sees)",
        f"pipeline bubble: {plan.bubble:.1%} of a step ({_bubble_equation(plan)})",
    ]
    return "\n".join(lines)


def document(plan: Plan) -> dict[str, object]:
    """The same, for programs; memory in bytes."""
    stages = zip(plan.parameters, plan.memory, strict=True)
    return {
        "world_size": plan.layout.world_size,
        "data_parallel": plan.layout.dp,
        "micro_batches": plan.layout.micro_batches,
        "tokens_per_step": plan.layout.tokens_per_step,
        "parameters": plan.total_parameters,
        "active_parameters": plan.active_parameters,
        "trained_parameters": plan.trained_parameters,
        "flops_per_token": plan.flops_per_token,
        "flops_per_step": plan.flops_per_step,
        "bubble_fraction": plan.bubble,
        "stages": [
            {
                "stage": stage,
                "chunks": [list(one.places) for one in plan.chunks if one.stage == stage],
                "parameters": {kind.value: _of(held, kind) for kind in Kind},
                "memory_bytes": {**asdict(memory), "total": memory.total},
            }
            for stage, (held, memory) in enumerate(stages)
        ],
    }


def _picture(chunks: Sequence[Chunk]) -> list[str]:
    """A row a stage, a column a chunk of its own."""
    last = len(chunks) - 1
    words = {
        (one.stage, one.chunk): " ".join(
            [*(["E"] if depth == 0 else []), *_runs(one.places), *(["H"] if depth == last else [])]
        )
        or "(empty)"
        for depth, one in enumerate(chunks)
    }
    stages, columns = 1 + max(s for s, _ in words), 1 + max(c for _, c in words)
    header = ["stage", *(f"chunk {column}" for column in range(columns))]
    rows = [[str(s), *(words[s, column] for column in range(columns))] for s in range(stages)]
    return _table([header, *rows], is_number=False)


def _runs(places: Iterable[int | None]) -> list[str]:
    """`0-3 . 4` of 0, 1, 2, 3, a noop, 4."""
    found: list[str] = []
    for is_noop, group in groupby(places, key=lambda place: place is None):
        some = list(group)
        if is_noop:
            found += ["."] * len(some)
        else:
            found.append(str(some[0]) if len(some) == 1 else f"{some[0]}-{some[-1]}")
    return found


def _parameters(plan: Plan) -> list[str]:
    everywhere = [one for stage in plan.parameters for one in stage]
    kinds = [kind for kind in Kind if any(one.kind is kind for one in everywhere)]
    whole = [
        sum(one.total for one in everywhere if one.kind is kind and not one.is_copy)
        for kind in kinds
    ]
    rows = [["", *(kind.value for kind in kinds), "sum"]]
    rows.append(["model", *(f"{count:,}" for count in (*whole, sum(whole)))])
    for stage, held in enumerate(plan.parameters):
        counts = [_of(held, kind) for kind in kinds]
        rows.append([f"stage {stage}", *(f"{count:,}" for count in (*counts, sum(counts)))])
    lines = _table(rows)
    if plan.active_parameters != plan.total_parameters:
        lines.append(f"a token meets {plan.active_parameters:,} of them")
    if plan.trained_parameters != plan.total_parameters:
        lines.append(f"{plan.trained_parameters:,} of them are trained")
    return lines


def _memory(memory: Sequence[Memory]) -> list[str]:
    _, unit = _unit(memory)
    kinds = list(asdict(memory[0]))
    rows = [["", *kinds, "sum"]]
    for stage, one in enumerate(memory):
        sizes = [*asdict(one).values(), one.total]
        rows.append([f"stage {stage}", *(f"{size / unit:,.2f}" for size in sizes)])
    return _table(rows)


def _unit(memory: Sequence[Memory]) -> tuple[str, int]:
    return ("GiB", _GIB) if max(one.total for one in memory) >= _GIB else ("MiB", _MIB)


def _of(held: Sequence[Parameters], kind: Kind) -> int:
    return sum(one.local for one in held if one.kind is kind)


def _bubble_equation(plan: Plan) -> str:
    pp = 1 + max(one.stage for one in plan.chunks)
    vpp, micro = len(plan.chunks) // pp, plan.layout.micro_batches
    return f"(pp({pp}) - 1) / (micro_batches({micro}) * vpp({vpp}) + pp({pp}) - 1)"


def _table(rows: Sequence[Sequence[str]], *, is_number: bool = True) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width in zip(others, widths[1:], strict=True)
        ]
        lines.append(("  " + "   ".join(cells)).rstrip())
    return lines
