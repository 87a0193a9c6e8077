"""The commands that the tables make: one a benchmark, and `import-data` for their data."""

from pathlib import Path
from typing import Any

import click

from llm_eval.benchmarks import BENCHMARKS, Benchmark, choose
from llm_eval.options import PATH, Command, model_choice, report, task_options, with_options
from llm_eval.originals import LAYOUTS


def commands() -> list[click.Command]:
    """`import-data`, then a command for each named benchmark."""
    return [import_data, *(_command(name, found) for name, found in BENCHMARKS.items())]


@click.command(
    "import-data",
    cls=Command,
    epilog="Example: llm-eval import-data mmlu data.tar --data eval-data\n\n\b\n"
    + "\n".join(f"{name:<12}{layout.distribution}" for name, layout in LAYOUTS.items()),
)
@click.argument("name", type=click.Choice(list(LAYOUTS)), metavar="NAME")
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--data", type=PATH, default="eval-data", show_default=True, help="Data folder.")
@click.option("--partial", is_flag=True, help="Accept files that lack subjects or splits.")
@click.option("--overwrite", is_flag=True, help="Replace what was imported before.")
def import_data(
    name: str, files: tuple[Path, ...], data: Path, *, partial: bool, overwrite: bool
) -> None:
    """Make a benchmark's original FILES (archives, folders, files) readable without a network.

    Writes rows and SHA-256 checksums to the data folder; --data of the benchmark commands and of
    run then reads them through the harness' own task files.
    """
    from llm_eval.edge import importing

    found = importing.import_data(name, files, data, partial=partial, overwrite=overwrite)
    click.echo(f"{found.folder}: {found.num_rows} rows of {found.num_datasets} data sets")


def _command(name: str, benchmark: Benchmark) -> click.Command:
    def run(
        *,
        data: Path | None,
        prompt_type: str,
        limit: int | None,
        unsafe: bool,
        num_fewshot: int | None = None,
        language: Any = None,
        size: str | None = None,
        **model: Any,
    ) -> None:
        from llm_eval.edge import benchmark as engine

        full_name, variant = choose(name, prompt_type, language)
        choice = engine.TaskChoice(
            names=variant.tasks,
            include_path=None,
            num_fewshot=variant.num_fewshot if num_fewshot is None else num_fewshot,
            limit=limit,
            data=data,
            prompt=full_name,
            is_chat=variant.is_chat,
            overrides=variant.overrides,
            unsafe=unsafe,
            size=size,
        )
        click.echo(f"{full_name} on {data or 'data of the Hugging Face hub'}", err=True)
        model_chosen, output, overwrite = model_choice(model)
        report(engine.run(choice, model_chosen, output, overwrite=overwrite), output)

    options = (
        click.option("--data", type=PATH, required=bool(benchmark.sizes),
                     help="Folder of import-data."
                     + ("" if benchmark.sizes else "  [default: the hub]")),
        click.option("--prompt-type", type=click.Choice(list(benchmark.variants)),
                     default="default", show_default=True, help="How to ask; see below."),
        *(
            [click.option("--language", type=click.Choice(list(benchmark.languages)),
                          help="Language of the prompts.  [default: the tasks' own]")]
            if benchmark.languages else []
        ),
        click.option("--limit", type=click.IntRange(min=1), help="Only the first N of each task."),
        click.option("--size", type=click.Choice(benchmark.sizes), default=benchmark.sizes[0],
                     show_default=True, help="Longest prompt, in the model's tokens.")
        if benchmark.sizes else
        click.option("--num-fewshot", type=click.IntRange(min=0), help="[default: see below]"),
    )  # fmt: skip
    kinds = "\n".join(f"{kind:<13}{v.what}" for kind, v in benchmark.variants.items())
    run.__doc__ = f"{benchmark.title}.\n\n\b\nPrompt types:\n{kinds}"
    example = f"Example: llm-eval {name} --model hf --data eval-data --output eval-{name}"
    decorated = task_options(with_options(run, options))
    return click.command(name, cls=Command, epilog=example)(decorated)
