"""What each command does, after parsing; imported only when a command runs."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import click
import torch

from llm_ckpt.edge import initial, show
from llm_ckpt.edge import verify as compare
from llm_ckpt.edge.convert import Outcome, Request, plan_for, run
from llm_ckpt.edge.folder import CHECKPOINT, arch_from_file
from llm_ckpt.edge.open import CheckpointOpener
from llm_ckpt.edge.space import check_space, space_line
from llm_ckpt.edge.target import check_expected, target_of
from llm_ckpt.errors import CheckpointError
from llm_ckpt.families import FAMILIES
from llm_ckpt.plan import Target


def init(
    *,
    model: Path,
    output: Path,
    tokenizer: Path | None,
    seed: int,
    dtype: str,
    overwrite: bool,
) -> None:
    """Write a randomly initialised Hugging Face folder."""
    prepared = initial.prepare(model, tokenizer=tokenizer, seed=seed, dtype=getattr(torch, dtype))
    _refuse_inside(output, tokenizer)
    request = Request(
        opener=prepared.opener,
        destination=output,
        target=Target(layout="hf"),
        fingerprint=prepared.opener.fingerprint(),
        is_overwritten=overwrite,
        files=prepared.files,
    )
    _report(run(request))


def convert(
    *,
    src: Path,
    output: Path,
    arch: Path | None,
    iteration: int | None,
    workers: int,
    resume: bool,
    overwrite: bool,
    plan_only: bool,
    expect: Mapping[str, int],
    lora: Path | None,
    lora_alpha: float | None,
    **layout: Any,
) -> None:
    """Convert, or only print the plan."""
    opener = CheckpointOpener(src, iteration, arch, lora, lora_alpha)
    target = _chosen(opener, layout, expect)
    if plan_only:
        _print_plan(opener, target, output)
        return
    _refuse_inside(output, src)
    request = Request(
        opener=opener,
        destination=output,
        target=target,
        fingerprint=opener.fingerprint(),
        workers=workers,
        is_resumed=resume,
        is_overwritten=overwrite,
    )
    _report(run(request))


def plan(
    *,
    src: Path,
    arch: Path | None,
    iteration: int | None,
    expect: Mapping[str, int],
    lora: Path | None,
    lora_alpha: float | None,
    **layout: Any,
) -> None:
    """Print what a conversion would write."""
    opener = CheckpointOpener(src, iteration, arch, lora, lora_alpha)
    _print_plan(opener, _chosen(opener, layout, expect))


def verify(*, a: Path, b: Path | None, arch: Path | None, iteration: int | None) -> bool:
    """Print differences; True when there are none."""
    problems = 0
    with ExitStack() as opened:
        openers = [CheckpointOpener(a, iteration, arch), *([CheckpointOpener(b)] if b else [])]
        sources = [opened.enter_context(opener()) for opener in openers]
        for source in sources:
            _say(source.notes)
        lines = chain.from_iterable(map(compare.check_files, sources))
        if len(sources) == 2:
            lines = chain(lines, compare.compare(*sources))
        for line in lines:
            click.echo(line)
            problems += 1
        count = len(compare.names_compared(sources[0], sources[-1])[0])
        has_checksums = (sources[0].located.weights / CHECKPOINT).is_file()
    done = f"{count} tensors equal, bit by bit" if b else "files agree with their checksums"
    if b is None and not has_checksums:
        done = f"{count} tensors have the right names and shapes; no checksums are recorded"
    click.echo(f"{problems} differences" if problems else f"same: {done}")
    return problems == 0


def arch(src: Path) -> None:
    """Print the arch.json of a checkpoint or of a configuration file."""
    if src.is_file():
        found = arch_from_file(src)
    else:
        with CheckpointOpener(src)() as source:
            found = source.architecture
            _say(source.notes)
    click.echo(found.dumps(), nl=False)


def inspect(*, src: Path, arch: Path | None, iteration: int | None) -> None:
    """Print a checkpoint's tree."""
    with CheckpointOpener(src, iteration, arch)() as source:
        _say(source.notes)
        for line in show.tree_lines(source):
            click.echo(line)


def families() -> None:
    """List the families."""
    for family in FAMILIES:
        click.echo(f"{family.name}  {family.architecture}")


def _chosen(
    opener: CheckpointOpener, layout: Mapping[str, Any], expect: Mapping[str, int]
) -> Target:
    chosen = target_of(**layout)
    _say(chosen.notes)
    if expect:
        with opener() as source:
            check_expected(expect, source.architecture, where=str(source.located.root))
    return chosen.target


def _print_plan(opener: CheckpointOpener, target: Target, output: Path | None = None) -> None:
    with opener() as source:
        _say(source.notes)
        plan = plan_for(source, target)
    for line in show.plan_lines(plan):
        click.echo(line)
    if output is not None:
        click.echo(space_line(output, plan.total_bytes))
        check_space(output, plan.total_bytes)


def _say(notes: Iterable[str]) -> None:
    for note in notes:
        click.echo(note, err=True)


def _refuse_inside(output: Path, source: Path | None) -> None:
    if source is None:
        return
    out, src = output.resolve(), source.resolve()
    if out == src or src in out.parents or out in src.parents:
        raise CheckpointError(f"{output}: the output must lie outside the source {source}")


def _report(outcome: Outcome) -> None:
    size = show.human(outcome.total_bytes)
    _say(outcome.notes)
    if outcome.is_already_done:
        click.echo(f"{outcome.destination}: already done ({size}); nothing to do")
        return
    resumed = f", {outcome.resumed} kept from before" if outcome.resumed else ""
    click.echo(f"{outcome.destination}: {outcome.written} files written, {size}{resumed}")
