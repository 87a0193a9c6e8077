"""What the commands share: the options that choose a model, errors as one line, the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from llm_eval.errors import EvalError

PATH = click.Path(path_type=Path)


class Command(click.Command):
    """A command whose user-made failures print as one `Error:` and exit 1."""

    def invoke(self, ctx: click.Context) -> object:
        """Run it; what a user or a file caused becomes a ClickException."""
        try:
            return super().invoke(ctx)
        except (EvalError, OSError) as error:
            raise click.ClickException(str(error)) from error


def model_options(
    command: Callable[..., None], *, batch_help: str = "Windows scored at once."
) -> Callable[..., None]:
    """Add the options that `model_choice` takes out again."""
    options = (
        click.option("--model", type=PATH, required=True,
                     help="Hugging Face folder, or what the scorer reads."),
        click.option("--output", type=PATH, required=True, help="Results folder."),
        click.option("--scorer", default="hf", show_default=True, help="hf, or an installed one."),
        click.option(
            "--device", type=click.Choice(["auto", "cpu", "cuda", "npu"]), default="auto",
            show_default=True, help="auto: CUDA, else NPU, else CPU.",
        ),
        click.option(
            "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto", show_default=True, help="auto: as the model was saved.",
        ),
        click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True,
                     help=batch_help),
        click.option("--max-length", type=click.IntRange(min=2),
                     help="Tokens in a window.  [default: the model's context]"),
        click.option("--overwrite", is_flag=True, help="Discard what the results folder holds."),
    )  # fmt: skip
    return with_options(command, options)


def task_options(command: Callable[..., None]) -> Callable[..., None]:
    """`model_options`, and those of runs of tasks."""
    options = (
        click.option("--url", help="OpenAI-compatible server, as http://host:8000/v1; --model is "
                     "then its tokenizer's folder, named like its model."),
        click.option("--retries", type=click.IntRange(min=0), default=5, show_default=True,
                     help="How often a failed batch is sent again to a server."),
        click.option("--dp", "data_parallel", type=click.IntRange(min=1), default=1,
                     show_default=True, help="Processes that score, each with the whole model."),
        click.option("--threads", type=click.IntRange(min=1),
                     help="CPU threads of each process.  [default: all cores]"),
        click.option("--unsafe", is_flag=True,
                     help="Run programs the model writes without a sandbox."),
    )  # fmt: skip
    batch = "Answers between two writes of the journal; requests sent at once to other engines."
    return model_options(with_options(command, options), batch_help=batch)


def with_options(
    command: Callable[..., None], options: tuple[Callable[..., Any], ...]
) -> Callable[..., None]:
    """The command with options that its help lists in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def model_choice(options: dict[str, Any]) -> tuple[Any, Path, bool]:
    """The model, the results folder, and whether to overwrite it."""
    from llm_eval.edge.perplexity import ModelChoice

    output, overwrite = options.pop("output"), options.pop("overwrite")
    return ModelChoice(**options), output, overwrite


def report(outcome: Any, output: Path) -> None:
    """Show the results, and on stderr whether they were there or were continued."""
    from llm_eval.edge.tables import print_results

    if outcome.was_finished:
        click.echo(f"{output}: already finished", err=True)
    elif outcome.num_resumed_batches:
        click.echo(f"continued after {outcome.num_resumed_batches} scored batches", err=True)
    print_results(outcome.results)
