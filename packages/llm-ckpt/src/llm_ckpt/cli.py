"""The `llm-ckpt` command: parses and calls."""

import sys
from pathlib import Path
from typing import Any

import click

from llm_ckpt import __version__
from llm_ckpt.edge.options import (
    DTYPES,
    FILE,
    FOLDER,
    ConvertCommand,
    Group,
    adapter_options,
    apply,
    layout_options,
    run_options,
    source_options,
)


@click.group(cls=Group, context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="llm-ckpt")
def main() -> None:
    """Hugging Face and Megatron-core weights, converted both ways for any parallel layout.

    \b
    Example: llm-ckpt convert my-hf-model --output my-mcore --to mcore --tp 2
    """


@main.command(epilog="Example: llm-ckpt init model.json --output hf-init --seed 1234")
@click.argument("model", type=FILE)
@click.option("--output", type=FOLDER, required=True, help="Hugging Face folder to write.")
@click.option("--tokenizer", type=FOLDER, help="Folder whose tokenizer files go along.")
@click.option("--seed", type=int, default=1234, show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace what llm-ckpt wrote there before.")
def init(**options: Any) -> None:
    """Write a randomly initialised Hugging Face folder from MODEL, a config.json or arch.json."""
    from llm_ckpt.edge import commands

    commands.init(**options)


@main.command(
    cls=ConvertCommand,
    epilog="Example: llm-ckpt convert hf-model --output mcore --to mcore --tp 2 --pp 2",
)
@click.argument("src", type=FOLDER)
@click.option("--output", type=FOLDER, required=True, help="Folder to write.")
@apply(layout_options(), source_options(), adapter_options(), run_options())
def convert(**options: Any) -> None:
    """Convert SRC (Hugging Face, Megatron v1 or v2: detected) to another format or layout."""
    from llm_ckpt.edge import commands

    commands.convert(**options)


@main.command(cls=ConvertCommand, epilog="Example: llm-ckpt plan hf-model --to mcore --tp 8 --pp 4")
@click.argument("src", type=FOLDER)
@apply(layout_options(), source_options(), adapter_options())
def plan(**options: Any) -> None:
    """Print what `convert` would write: files, sizes, memory. Exit 1 when it cannot."""
    from llm_ckpt.edge import commands

    commands.plan(**options)


@main.command("merge-lora", epilog="Example: llm-ckpt merge-lora hf-model adapter --output merged")
@click.argument("base", type=FOLDER)
@click.argument("adapter", type=FOLDER)
@click.option("--output", type=FOLDER, required=True, help="Folder to write.")
@apply(layout_options(default_format="hf"), source_options(), run_options())
def merge_lora(base: Path, adapter: Path, **options: Any) -> None:
    """Merge ADAPTER into BASE, in fp32: `convert` with --lora."""
    from llm_ckpt.edge import commands

    commands.convert(src=base, lora=adapter, lora_alpha=None, **options)


@main.command("export-lora", epilog="Example: llm-ckpt export-lora mcore-lora --output adapter")
@click.argument("src", type=FOLDER)
@click.option("--output", type=FOLDER, required=True, help="PEFT folder to write.")
@click.option("--lora-alpha", type=float, help="Where SRC does not say.")
@apply(source_options())
def export_lora(**options: Any) -> None:
    """Write the LoRA factors of SRC, a Megatron v1 folder, as a PEFT adapter."""
    from llm_ckpt.edge import adapters

    adapters.export_lora(**options)


@main.command(
    "import-lora",
    epilog="Example: llm-ckpt import-lora adapter --base hf-model --output mcore-lora --tp 2",
)
@click.argument("adapter", type=FOLDER)
@click.option("--base", type=FOLDER, required=True, help="Model it is for, or its config.json.")
@click.option("--output", type=FOLDER, required=True, help="Megatron v1 folder to write.")
@apply(layout_options(default_format="mcore"))
def import_lora(**options: Any) -> None:
    """Write a PEFT adapter as LoRA factors in Megatron v1 rank files, without the base."""
    from llm_ckpt.edge import adapters

    options.pop("expect")
    adapters.import_lora(**options)


@main.command(epilog="Example: llm-ckpt verify hf-model mcore")
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER, required=False)
@apply(source_options())
def verify(**options: Any) -> None:
    """Compare A and B tensor by tensor, bit by bit, in any formats; or A with its checksums.

    Exit code 1 and a line for each difference. --iteration and --arch are those of A.
    """
    from llm_ckpt.edge import commands

    if not commands.verify(**options):
        sys.exit(1)


@main.command(epilog="Example: llm-ckpt arch hf-model > arch.json")
@click.argument("src", type=FOLDER)
def arch(src: Path) -> None:
    """Print the arch.json of SRC: a folder of any format, or a config.json."""
    from llm_ckpt.edge import commands

    commands.arch(src)


@main.command(epilog="Example: llm-ckpt inspect mcore")
@click.argument("src", type=FOLDER)
@apply(source_options())
def inspect(**options: Any) -> None:
    """Print what is in SRC as a tree: names, shapes, dtypes, sizes."""
    from llm_ckpt.edge import commands

    commands.inspect(**options)


@main.command(epilog="Example: llm-ckpt families")
def families() -> None:
    """List the model families that convert."""
    from llm_ckpt.edge import commands

    commands.families()
