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


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that `model_choice` takes out again."""
    options = (
        click.option("--model", type=PATH, required=True, help="Hugging Face model folder."),
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
        click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True),
        click.option("--max-length", type=click.IntRange(min=2),
                     help="Tokens in a window.  [default: the model's context]"),
        click.option("--overwrite", is_flag=True, help="Discard what the results folder holds."),
    )  # fmt: skip
    return with_options(command, options)


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
