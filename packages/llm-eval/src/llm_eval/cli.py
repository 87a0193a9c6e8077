"""The `llm-eval` command: parses and calls."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from llm_eval import __version__
from llm_eval.errors import EvalError


class _Command(click.Command):
    """A command whose user-made failures print as one `Error:` and exit 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (EvalError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(epilog="Exit codes: 0 ok, 1 failed, 2 usage.")
@click.version_option(__version__)
def main() -> None:
    """Score language models with lm-evaluation-harness, on local data."""


def _model_options(command: Callable[..., None]) -> Callable[..., None]:
    path = click.Path(path_type=Path)
    options = (
        click.option("--model", type=path, required=True, help="Hugging Face model folder."),
        click.option("--output", type=path, required=True, help="Results folder."),
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
    for option in reversed(options):
        command = option(command)
    return command


@main.command(
    cls=_Command,
    epilog="Example: llm-eval perplexity heldout --pattern '*.py' --model hf --output eval-hf",
)
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@_model_options
@click.option("--pattern", default="*.txt", show_default=True, help="Files of a folder to read.")
@click.option("--text-key", default="text", show_default=True, help="Key of the text in .jsonl.")
@click.option("--max-documents", type=click.IntRange(min=1), help="Score only the first N.")
def perplexity(
    inputs: tuple[Path, ...],
    pattern: str,
    text_key: str,
    max_documents: int | None,
    **model: Any,
) -> None:
    """Perplexity of a model on text files, folders of them, or .jsonl files.

    The same command again continues an interrupted run and shows a finished one.
    """
    from llm_eval.edge import perplexity as engine

    documents = engine.DocumentChoice(
        inputs=inputs, pattern=pattern, text_key=text_key, limit=max_documents
    )
    choice, output, overwrite = _model_choice(model)
    _report(engine.run(documents, choice, output, overwrite=overwrite), output)


@main.command(cls=_Command, epilog="Example: llm-eval run hellaswag --model hf --output eval-hs")
@click.argument("tasks", nargs=-1, required=True)
@_model_options
@click.option("--limit", type=click.IntRange(min=1), help="Score only the first N of each task.")
@click.option("--num-fewshot", type=click.IntRange(min=0), help="[default: the task's own]")
@click.option("--include-path", type=click.Path(path_type=Path), help="Folder of own task files.")
def run(
    tasks: tuple[str, ...],
    limit: int | None,
    num_fewshot: int | None,
    include_path: Path | None,
    **model: Any,
) -> None:
    """Run tasks of lm-evaluation-harness, shipped or your own (.yaml files)."""
    from llm_eval.edge import benchmark

    choice = benchmark.TaskChoice(
        names=tasks, include_path=include_path, num_fewshot=num_fewshot, limit=limit
    )
    model_choice, output, overwrite = _model_choice(model)
    _report(benchmark.run(choice, model_choice, output, overwrite=overwrite), output)


@main.command("list", cls=_Command, epilog="Example: llm-eval list 'mmlu*'")
@click.argument("pattern", default="*")
@click.option("--include-path", type=click.Path(path_type=Path), help="Folder of own task files.")
def list_(pattern: str, include_path: Path | None) -> None:
    """List tasks, groups and tags whose name matches PATTERN."""
    from llm_eval.edge import tasks

    index = tasks.index(include_path)
    found = sorted(name for name in index if fnmatchcase(name, pattern))
    if not found:
        raise EvalError(f"no task matches {pattern!r} among {len(index)}")
    for name in found:
        click.echo(f"{index[name].kind:<6} {name}")


@main.command(cls=_Command, epilog="Example: llm-eval compare eval-before eval-after")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
def compare(before: Path, after: Path) -> None:
    """Show two results side by side, with their differences."""
    from llm_eval.comparison import compare as compare_results
    from llm_eval.edge.run_folder import read_results
    from llm_eval.edge.tables import print_comparison

    rows = compare_results(read_results(before), read_results(after))
    print_comparison(rows, before=before.name, after=after.name)


def _model_choice(options: dict[str, Any]) -> tuple[Any, Path, bool]:
    from llm_eval.edge.perplexity import ModelChoice

    output, overwrite = options.pop("output"), options.pop("overwrite")
    return ModelChoice(**options), output, overwrite


def _report(outcome: Any, output: Path) -> None:
    from llm_eval.edge.tables import print_results

    if outcome.was_finished:
        click.echo(f"{output}: already finished", err=True)
    elif outcome.num_resumed_batches:
        click.echo(f"continued after {outcome.num_resumed_batches} scored batches", err=True)
    print_results(outcome.results)
