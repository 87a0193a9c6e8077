"""The `llm-data` command."""

from pathlib import Path

import click

from llm_data.config import OnError, TrainingConfig
from llm_data.edge.console.datasets import blend, merge, split
from llm_data.edge.console.options import configs_of, preprocess_options
from llm_data.edge.console.sections import SectionCommand
from llm_data.edge.console.support import PATH, TOKENIZER, reading, reported
from llm_data.edge.console.templates import templates


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="llm-data")
def main() -> None:
    """Raw text, chat and preference data to indexed, memory-mapped token datasets.

    INPUT is any mix of files and folders: txt, jsonl, json, csv, parquet, arrow, also .gz and
    .zst. Exit codes: 0 ok, 1 failed, 2 usage.
    """


for _command in (merge, split, blend, templates):
    main.add_command(_command)


@main.command(
    "train-tokenizer",
    epilog="Example: llm-data train-tokenizer corpus --pattern '*.py' --vocab-size 8192 "
    "--output tokenizer",
)
@click.option("--output", type=PATH, required=True, metavar="DIR", help="Folder to write.")
@click.option("--vocab-size", type=int, default=8192, show_default=True)
@click.option(
    "--special-tokens",
    multiple=True,
    metavar="TOKEN",
    help="A token never cut, besides <|endoftext|> and <|pad|>. Repeatable.",
)
@reading
def train_tokenizer(
    inputs: tuple[Path, ...],
    output: Path,
    vocab_size: int,
    special_tokens: tuple[str, ...],
    key: str,
    patterns: tuple[str, ...],
    on_error: str,
    overwrite: bool,
) -> None:
    """Train a byte-level BPE tokenizer that decodes every text exactly."""
    with reported():
        from llm_data.edge.console.progress import terminal_progress
        from llm_data.edge.console.report import print_training
        from llm_data.edge.tokenizer_training import train_tokenizer as train

        config = TrainingConfig(
            inputs=inputs,
            output=output,
            vocab_size=vocab_size,
            special_tokens=special_tokens,
            key=key,
            patterns=patterns,
            on_error=OnError(on_error),
            overwrite=overwrite,
        )
        with terminal_progress("train-tokenizer") as progress:
            result = train(config, progress=progress)
        print_training(result, config)


@main.command(
    cls=SectionCommand,
    epilog="Example: llm-data preprocess corpus/train --pattern '*.py' --tokenizer tokenizer "
    "--output data/train --append-eod --workers 2",
)
@preprocess_options
def preprocess(**options: object) -> None:
    """Tokenize INPUT into a dataset; the bytes are the same for any --workers."""
    with reported():
        configs = configs_of(options)
        from llm_data.edge.console.progress import terminal_progress
        from llm_data.edge.runs.pipeline import preprocess as run

        for config in configs:
            with terminal_progress("preprocess") as progress:
                result = run(config, progress=progress)
            from llm_data.edge.console.report import print_run

            print_run(result, config)


@main.command(epilog="Example: llm-data verify data/train")
@click.argument("prefix", type=PATH)
@click.option("--index-only", is_flag=True, help="A pair without manifest, as Megatron writes.")
def verify(prefix: Path, index_only: bool) -> None:
    """Check every table, token, label and checksum of a dataset; exit 1 with the reason."""
    with reported():
        from llm_data.edge.datasets.any_dataset import verified

        click.echo(f"ok: {verified(prefix, index_only=index_only)}")


@main.command(epilog="Example: llm-data inspect data/train --tokenizer tokenizer --documents 2")
@click.argument("prefix", type=PATH)
@TOKENIZER
@click.option(
    "--documents",
    "--rows",
    "documents",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How many.",
)
def inspect(prefix: Path, tokenizer: Path, documents: int) -> None:
    """Print a dataset's counts and its first documents or rows as text, what is learned marked."""
    with reported():
        from llm_data.edge.datasets.any_dataset import inspect as show

        show(prefix, tokenizer=tokenizer, count=documents)
