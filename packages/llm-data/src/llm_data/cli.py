"""The `llm-data` command."""

from pathlib import Path

import click

from llm_data.config import DtypeChoice, OnError, PreprocessConfig, TrainingConfig
from llm_data.edge.cli_support import PATH, TOKENIZER, reading, reported


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="llm-data")
def main() -> None:
    """Raw text to indexed, memory-mapped token datasets.

    INPUT is any mix of files and folders: txt, jsonl, json, csv, parquet, arrow, also .gz and
    .zst. Exit codes: 0 ok, 1 failed, 2 usage.
    """


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
        from llm_data.edge.progress import terminal_progress
        from llm_data.edge.report import print_training
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
    epilog="Example: llm-data preprocess corpus/train --pattern '*.py' --tokenizer tokenizer "
    "--output data/train --append-eod --workers 2"
)
@click.option("--input", "more_inputs", multiple=True, type=PATH, help="The same as INPUT.")
@TOKENIZER
@click.option(
    "--output",
    "--output-prefix",
    "output",
    type=PATH,
    required=True,
    metavar="PREFIX",
    help="Writes PREFIX_<key>_document.bin, .idx and .json.",
)
@click.option("--append-eod", is_flag=True, help="End every document with the eos token.")
@click.option("--eos-token", metavar="TOKEN", help="That token, if the folder names none.")
@click.option("--workers", type=int, help="Processes.  [default: to fit machine and input]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "uint16", "int32"]),
    default="auto",
    show_default=True,
    help="auto: uint16 below 65500 ids, as Megatron has it.",
)
@click.option(
    "--resume/--no-resume", default=True, show_default=True, help="Go on where a run was killed."
)
@click.option(
    "--chunk-mib",
    type=click.FloatRange(min=0, min_open=True),
    default=16,
    show_default=True,
    help="Text between two points of return.",
)
@reading
def preprocess(
    inputs: tuple[Path, ...],
    more_inputs: tuple[Path, ...],
    tokenizer: Path,
    output: Path,
    append_eod: bool,
    eos_token: str | None,
    workers: int | None,
    dtype: DtypeChoice,
    resume: bool,
    chunk_mib: float,
    key: str,
    patterns: tuple[str, ...],
    on_error: str,
    overwrite: bool,
) -> None:
    """Tokenize INPUT into a dataset; the bytes are the same for any --workers."""
    with reported():
        config = PreprocessConfig(
            inputs=inputs + more_inputs,
            tokenizer=tokenizer,
            output=output,
            key=key,
            patterns=patterns,
            append_eod=append_eod,
            eos_token=eos_token,
            dtype=dtype,
            on_error=OnError(on_error),
            workers=workers,
            resume=resume,
            overwrite=overwrite,
            chunk_bytes=max(1, int(chunk_mib * (1 << 20))),
        )
        from llm_data.edge.pipeline import preprocess as run
        from llm_data.edge.progress import terminal_progress

        with terminal_progress("preprocess") as progress:
            result = run(config, progress=progress)
        from llm_data.edge.report import print_run

        print_run(result, config)


@main.command(epilog="Example: llm-data verify data/train")
@click.argument("prefix", type=PATH)
@click.option("--index-only", is_flag=True, help="A pair without manifest, as Megatron writes.")
def verify(prefix: Path, index_only: bool) -> None:
    """Check every table, token and checksum of a dataset; exit 1 with the reason."""
    with reported():
        from llm_data.edge.token_dataset import verify as check

        dataset = check(prefix, index_only=index_only)
        click.echo(
            f"ok: {dataset.name}: {len(dataset):,} documents, {dataset.index.num_tokens:,} tokens"
        )


@main.command(epilog="Example: llm-data inspect data/train --tokenizer tokenizer --documents 2")
@click.argument("prefix", type=PATH)
@TOKENIZER
@click.option(
    "--documents", type=click.IntRange(min=0), default=3, show_default=True, help="How many."
)
def inspect(prefix: Path, tokenizer: Path, documents: int) -> None:
    """Print a dataset's counts and its first documents as text."""
    with reported():
        from llm_data.edge.report import inspect as show

        show(prefix, tokenizer=tokenizer, documents=documents)
