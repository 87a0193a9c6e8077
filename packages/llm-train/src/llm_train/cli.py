"""The command `llm-train`: run a training, check its config, plot its metrics."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from llm_train.edge.rank_error import RunFailedError, reported_errors


def _example(line: str) -> str:
    # \b keeps click from joining the lines.
    return f"\b\nExample:\n  {line}"


_CONFIG = click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


@click.group(
    epilog=_example("llm-train run run.yaml train.max_steps=100 --nproc 2"),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="llm-train")
def main() -> None:
    """Pretrain and fine-tune language models on megatron-core.

    Exit codes: 0 ok, 1 failed, 2 usage.
    """


@main.command(epilog=_example("llm-train run run.yaml optimizer.lr=3e-4 parallel.tp=2 --nproc 2"))
@_CONFIG
@_OVERRIDES
@click.option("--nproc", type=click.IntRange(min=1), help="Ranks to start on this machine.")
def run(config: Path, overrides: tuple[str, ...], nproc: int | None) -> None:
    """Train as CONFIG says, with KEY=VALUE overrides.

    Under torchrun this process is one rank. Alone it starts its ranks itself: --nproc of them, or
    the fewest the layout can have.
    """
    from llm_train.edge.start import start

    if nproc is not None and "RANK" in os.environ:
        raise click.UsageError(
            "--nproc starts ranks, but this process is one already (RANK is set)"
        )
    with _sentences():
        start(config, overrides, nproc=nproc)


@main.command(epilog=_example("llm-train check run.yaml parallel.tp=4 --world-size 8"))
@_CONFIG
@_OVERRIDES
@click.option("--world-size", type=click.IntRange(min=1), help="Ranks in all; default: the fewest.")
def check(config: Path, overrides: tuple[str, ...], world_size: int | None) -> None:
    """Check CONFIG against its model and ranks; start nothing."""
    from llm_train.edge.start import describe

    with _sentences():
        click.echo(describe(config, overrides, world_size=world_size))


@main.command(
    epilog=_example("llm-train plot runs/a runs/b --output compare.png --html compare.html")
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="The PNG to write.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="One HTML page.")
def plot(runs: tuple[Path, ...], output: Path | None, html: Path | None) -> None:
    """Plot each RUN over one another.

    A RUN is a run folder or its metrics.jsonl. Without --output and --html, loss.png is written
    into the first RUN's folder.
    """
    from llm_train.edge.plot_file import plot_runs

    with _sentences():
        for path in plot_runs(runs, output=output, html=html):
            click.echo(f"wrote {path}")


@main.command(epilog=_example("llm-train schema > run.schema.json"))
def schema() -> None:
    """Print the JSON Schema of a config, for editors."""
    from llm_train.config import RunConfig

    click.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


@contextmanager
def _sentences() -> Iterator[None]:
    """Print what went wrong as `Error: ...` and exit 1."""
    try:
        with reported_errors():
            yield
    except RunFailedError as error:
        raise click.ClickException(str(error)) from None
