"""The `llm-ckpt` command: parses and calls."""

import sys
from pathlib import Path
from typing import Any

import click

from llm_ckpt import __version__
from llm_ckpt.errors import CheckpointError

DTYPES = ("float32", "bfloat16", "float16")
FOLDER = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)


class Group(click.Group):
    """Turns errors a user or a file causes into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (CheckpointError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Group, context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="llm-ckpt")
def main() -> None:
    """Hugging Face and Megatron-core weights, converted both ways for any parallel layout.

    \b
    Example: llm-ckpt convert my-hf-model --output my-mcore --to mcore --tp 2
    """


def _layers(
    _ctx: click.Context, _param: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: want whole numbers like 7,9") from None


def _source_options(command: Any) -> Any:
    for option in (
        click.option("--arch", type=FILE, help="arch.json or config.json of SRC, if it has none."),
        click.option("--iteration", type=click.IntRange(min=0), help="Iteration of SRC [latest]."),
    ):
        command = option(command)
    return command


def _layout_options(command: Any) -> Any:
    for option in (
        click.option("--per-layer-keys", is_flag=True, help="v2: one key a layer, not stacked."),
        click.option("--dtype", type=click.Choice(DTYPES), help="Cast to this [keep]."),
        click.option(
            "--make-vocab-size-divisible-by",
            type=click.IntRange(min=1),
            default=128,
            show_default=True,
            help="v1: vocabulary rows are padded to a multiple of this times tp.",
        ),
        click.option("--num-layer-list", callback=_layers, help="Layers a stage, as 7,9."),
        click.option("--vpp", type=click.IntRange(min=1), default=1, help="v1: chunks a stage."),
        click.option("--pp", type=click.IntRange(min=1), default=1, help="v1: pipeline stages."),
        click.option("--tp", type=click.IntRange(min=1), default=1, help="v1: tensor parallel."),
        click.option("--layout", type=click.Choice(("v1", "v2")), help="Megatron layout [v1]."),
        click.option("--to", type=click.Choice(("hf", "mcore")), required=True, help="Format."),
    ):
        command = option(command)
    return command


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


@main.command(epilog="Example: llm-ckpt convert hf-model --output mcore --to mcore --tp 2 --pp 2")
@click.argument("src", type=FOLDER)
@click.option("--output", type=FOLDER, required=True, help="Folder to write.")
@_layout_options
@_source_options
@click.option("--workers", type=click.IntRange(min=1), default=1, help="Processes.")
@click.option("--resume", is_flag=True, help="Keep finished files of an interrupted run.")
@click.option("--overwrite", is_flag=True, help="Replace what llm-ckpt wrote there before.")
@click.option("--plan-only", is_flag=True, help="Print the plan and write nothing.")
def convert(**options: Any) -> None:
    """Convert SRC (Hugging Face, Megatron v1 or v2: detected) to another format or layout."""
    from llm_ckpt.edge import commands

    commands.convert(**options)


@main.command(epilog="Example: llm-ckpt plan hf-model --to mcore --tp 8 --pp 4")
@click.argument("src", type=FOLDER)
@_layout_options
@_source_options
def plan(**options: Any) -> None:
    """Print what `convert` would write: files, sizes, memory. Exit 1 when it cannot."""
    from llm_ckpt.edge import commands

    commands.plan(**options)


@main.command(epilog="Example: llm-ckpt verify hf-model mcore")
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER, required=False)
@_source_options
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
@_source_options
def inspect(**options: Any) -> None:
    """Print what is in SRC as a tree: names, shapes, dtypes, sizes."""
    from llm_ckpt.edge import commands

    commands.inspect(**options)


@main.command(epilog="Example: llm-ckpt families")
def families() -> None:
    """List the model families that convert."""
    from llm_ckpt.edge import commands

    commands.families()
