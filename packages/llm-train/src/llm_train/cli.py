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


@main.command(epilog=_example("llm-train plan run.yaml parallel.pp=4 --world-size 64"))
@_CONFIG
@_OVERRIDES
@click.option("--world-size", type=click.IntRange(min=1), help="Ranks in all; default: the fewest.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON document.")
def plan(config: Path, overrides: tuple[str, ...], world_size: int | None, is_json: bool) -> None:
    """Show where the layers of CONFIG go and what each rank will need; start nothing.

    Parameters and memory by kind, operations a step and the pipeline's idle time, from the config
    and arch.json alone. A layout that cannot be is refused with its equation.
    """
    from llm_train.edge.plan_command import plan_text

    with _sentences():
        click.echo(plan_text(config, overrides, world_size=world_size, is_json=is_json))


@main.command(
    epilog=_example("llm-train bench run.yaml parallel.tp=2 train.precision=bf16 --steps 50")
)
@_CONFIG
@_OVERRIDES
@click.option("--nproc", type=click.IntRange(min=1), help="Ranks to start on this machine.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Timed.")
@click.option(
    "--warmup", type=click.IntRange(min=0), default=5, show_default=True, help="Steps before them."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of the table.")
def bench(
    config: Path,
    overrides: tuple[str, ...],
    nproc: int | None,
    steps: int,
    warmup: int,
    as_json: bool,
) -> None:
    """Time steps of CONFIG's model on random tokens.

    Reads no data and no weights, writes nothing.
    """
    from llm_train.edge import bench_command

    with _sentences():
        bench_command.bench(
            config, overrides, nproc=nproc, steps=steps, warmup=warmup, as_json=as_json
        )


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


@main.command(epilog=_example("llm-train parity --hf models/Qwen3-0.6B --dtype fp32"))
@click.option(
    "--hf",
    "folder",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The Hugging Face folder of the model.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Type of the weights and of what is computed.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "npu"]),
    default="auto",
    show_default=True,
    help="Where both models run, one after the other.",
)
@click.option("--batch", type=click.IntRange(min=1), default=2, show_default=True, help="Rows.")
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Random tokens in a row.",
)
@click.option("--seed", type=int, default=1234, show_default=True, help="Of the tokens.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="Largest difference that counts as equal, as a part of the largest value; "
    "default 1e-4 in fp32, 1e-1 in bf16, 2e-2 in fp16.",
)
@click.option("--gradients/--no-gradients", default=True, help="Compare backward too (default).")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON document.")
def parity(
    folder: Path,
    dtype: str,
    device: str,
    batch: int,
    tokens: int,
    seed: int,
    tolerance: float | None,
    gradients: bool,
    is_json: bool,
) -> None:
    """Compare our model of a folder with transformers', layer by layer.

    One batch of random tokens goes through both; the first layer where they part is named, in the
    forward pass and in the gradients, with by how much. Exits 1 when they part. Needs llm-ckpt and
    transformers.
    """
    from llm_train.config import Precision
    from llm_train.edge.parity_run import Options, compare
    from llm_train.parity import document, table, verdict

    options = Options(
        precision=Precision(dtype),
        device=device,
        batch=batch,
        tokens=tokens,
        seed=seed,
        tolerance=tolerance,
        has_gradients=gradients,
    )
    with _sentences():
        found = compare(folder, options)
    if is_json:
        click.echo(json.dumps(document(found), indent=2))
    else:
        click.echo("\n".join(table(found)))
        click.echo(f"loss {found.loss:.6f}, transformers {found.wanted_loss:.6f}")
        click.echo(verdict(found))
    if not found.is_equal:
        raise SystemExit(1)


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
