"""The `llm-eval` command: parses and calls."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from llm_eval import __version__, named
from llm_eval.asking import amount, asking_options
from llm_eval.errors import EvalError
from llm_eval.options import PATH, Command, model_choice, model_options, report, task_options


@click.group(epilog="Exit codes: 0 ok, 1 failed, 2 usage.")
@click.version_option(__version__)
def main() -> None:
    """Score language models with lm-evaluation-harness, on local data."""


@main.command(
    cls=Command,
    epilog="Example: llm-eval perplexity heldout --pattern '*.py' --model hf --output eval-hf",
)
@click.argument("inputs", nargs=-1, required=True, type=PATH)
@model_options
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
    """Perplexity of a model on text or on token datasets.

    INPUTS are text files, folders of them and .jsonl files, or token datasets, each named by its
    path without .bin or .idx.

    The same command again continues an interrupted run and shows a finished one.
    """
    from llm_eval.edge import perplexity as engine

    documents = engine.DocumentChoice(
        inputs=inputs, pattern=pattern, text_key=text_key, limit=max_documents
    )
    chosen, output, overwrite = model_choice(model)
    report(engine.run(documents, chosen, output, overwrite=overwrite), output)


@main.command(cls=Command, epilog="Example: llm-eval run hellaswag --model hf --output eval-hs")
@click.argument("tasks", nargs=-1, required=True)
@task_options
@click.option("--limit", metavar="N|SHARE", callback=amount,
              help="Score only the first N of each task, or this share.")  # fmt: skip
@click.option("--num-fewshot", type=click.IntRange(min=0), help="[default: the task's own]")
@click.option("--apply-chat-template", is_flag=True, help="Ask as a conversation.")
@asking_options
@click.option("--include-path", type=PATH, help="Folder of own task files.")
@click.option("--data", type=PATH, help="Folder of import-data.  [default: the hub]")
def run(
    tasks: tuple[str, ...],
    limit: float | None,
    num_fewshot: int | None,
    include_path: Path | None,
    data: Path | None,
    *,
    apply_chat_template: bool,
    is_multiturn: bool,
    system: str | None,
    generation: dict[str, object],
    samples: dict[str, list[int]],
    unsafe: bool,
    **model: Any,
) -> None:
    """Run tasks of lm-evaluation-harness, shipped or your own (.yaml files)."""
    from llm_eval.edge import benchmark

    choice = benchmark.TaskChoice(
        names=tasks,
        include_path=include_path,
        num_fewshot=num_fewshot,
        limit=limit,
        data=data,
        is_chat=apply_chat_template,
        is_multiturn=is_multiturn,
        system=system,
        generation=generation,
        samples=samples,
        unsafe=unsafe,
    )
    model_chosen, output, overwrite = model_choice(model)
    report(benchmark.run(choice, model_chosen, output, overwrite=overwrite), output)


@main.command("list", cls=Command, epilog="Example: llm-eval list 'mmlu*'")
@click.argument("pattern", default="*")
@click.option("--include-path", type=PATH, help="Folder of own task files.")
def list_(pattern: str, include_path: Path | None) -> None:
    """List tasks, groups and tags whose name matches PATTERN."""
    from llm_eval.edge import tasks

    index = tasks.index(include_path)
    found = sorted(name for name in index if fnmatchcase(name, pattern))
    if not found:
        raise EvalError(f"no task matches {pattern!r} among {len(index)}")
    for name in found:
        click.echo(f"{index[name].kind:<6} {name}")


@main.command(cls=Command, epilog="Example: llm-eval compare eval-before eval-after")
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
def compare(before: Path, after: Path) -> None:
    """Show two results side by side, with their differences and 95 % intervals.

    Runs over the same documents are compared document by document. `better?` and `worse?` are
    differences that may be chance.
    """
    from llm_eval.comparison import compare as compare_results
    from llm_eval.edge.run_folder import read_results, read_samples
    from llm_eval.edge.tables import print_comparison

    rows = compare_results(
        read_results(before),
        read_results(after),
        samples_before=read_samples(before),
        samples_after=read_samples(after),
    )
    print_comparison(rows, before=before.name, after=after.name)


@main.command(
    "report", cls=Command, epilog="Example: llm-eval report eval-before eval-after --html r.html"
)
@click.argument("results", nargs=-1, required=True, type=PATH)
@click.option("--html", type=PATH, help="File to write: one page, nothing to fetch.")
@click.option("--markdown", type=PATH, help="File to write.  [default: to the screen]")
def report_(results: tuple[Path, ...], html: Path | None, markdown: Path | None) -> None:
    """Write a report of one or more results: totals, and a bar for each subject."""
    from llm_eval.edge.atomic import write_atomic
    from llm_eval.edge.run_folder import read_results
    from llm_eval.report import gather, to_html, to_markdown

    found = gather([(folder.name, read_results(folder)) for folder in results])
    if html is not None:
        write_atomic(html, to_html(found).encode())
    if markdown is not None:
        write_atomic(markdown, to_markdown(found).encode())
    if html is None and markdown is None:
        click.echo(to_markdown(found), nl=False)


for _named in named.commands():
    main.add_command(_named)
