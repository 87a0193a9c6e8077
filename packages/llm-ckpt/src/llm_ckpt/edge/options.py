"""The options that commands share; light, since every help page loads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from llm_ckpt.edge import mindspeed
from llm_ckpt.errors import CheckpointError

DTYPES = ("float32", "bfloat16", "float16")
FOLDER = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
Decorator = Callable[[Any], Any]
_COUNT = click.IntRange(min=1)


class Group(click.Group):
    """Turns errors a user or a file causes into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (CheckpointError, OSError) as error:
            raise click.ClickException(str(error)) from error


class ConvertCommand(click.Command):
    """A command that takes the option names of MindSpeed-LLM's converters too."""

    aliases = frozenset(option.name for option in mindspeed.OPTIONS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Translate, tell what was ignored, parse."""
        try:
            translated = mindspeed.translate(args)
        except mindspeed.RefusedOptionError as error:
            raise click.UsageError(str(error), ctx) from None
        for note in translated.notes:
            click.echo(f"note: {note}", err=True)
        return super().parse_args(ctx, list(translated.args))


def _numbers(
    _ctx: click.Context, _param: click.Parameter, text: str | None
) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: want whole numbers like 7,9") from None


def _expectations(
    _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not value.isdigit():
            raise click.BadParameter(f"{text!r}: want NAME=NUMBER")
        found[name] = int(value)
    return found


def source_options() -> tuple[Decorator, ...]:
    """How to read SRC."""
    return (
        click.option("--iteration", type=click.IntRange(min=0), help="Iteration of SRC [latest]."),
        click.option("--arch", type=FILE, help="arch.json or config.json of SRC, if it has none."),
    )


def adapter_options() -> tuple[Decorator, ...]:
    """An adapter that is merged on the way."""
    return (
        click.option(
            "--lora",
            type=FOLDER,
            help="Merge this adapter: a PEFT folder, or a Megatron folder with LoRA factors.",
        ),
        click.option("--lora-alpha", type=float, help="Of a Megatron folder that does not say."),
    )


def layout_options(*, default_format: str | None = None) -> tuple[Decorator, ...]:
    """What is written."""
    formats = click.Choice(("hf", "mcore"))
    return (
        click.option("--to", type=formats, required=True, help="Format.")
        if default_format is None
        else click.option("--to", type=formats, default=default_format, show_default=True),
        click.option("--layout", type=click.Choice(("v1", "v2")), help="Megatron layout [v1]."),
        *_parallel_options(),
        *_name_options(),
        click.option("--dtype", type=click.Choice(DTYPES), help="Cast to this [keep]."),
        click.option("--per-layer-keys", is_flag=True, help="v2: one key a layer, not stacked."),
        click.option("--no-optimizer", is_flag=True, help="Leave optimizer state out."),
        click.option("--expect", multiple=True, callback=_expectations, hidden=True),
    )


def _parallel_options() -> tuple[Decorator, ...]:
    return (
        click.option("--tp", type=_COUNT, default=1, help="v1: tensor parallel."),
        click.option("--pp", type=_COUNT, default=1, help="v1: pipeline stages."),
        click.option("--ep", type=_COUNT, default=1, help="v1: expert parallel."),
        click.option("--etp", type=_COUNT, help="v1: tensor parallel of experts [tp]."),
        click.option("--cp", type=_COUNT, default=1, help="Context parallel; changes no file."),
        click.option("--vpp", type=_COUNT, default=1, help="v1: chunks a stage."),
        click.option("--layers-per-chunk", type=_COUNT, help="v1: instead of --vpp."),
        click.option("--num-layer-list", callback=_numbers, help="v1: layers a stage, as 7,9."),
        click.option(
            "--noop-layers",
            callback=_numbers,
            help="v1: empty layers, numbered with the others, as 0,15.",
        ),
        click.option(
            "--schedule",
            type=click.Choice(("interleaved", "dualpipev")),
            default="interleaved",
            help="v1: order of chunks [interleaved].",
        ),
        click.option(
            "--moe-tp-extend-ep", is_flag=True, help="v1: deal experts out over tp too, uncut."
        ),
    )


def _name_options() -> tuple[Decorator, ...]:
    return (
        click.option(
            "--dialect",
            type=click.Choice(("megatron", "mindspeed", "legacy")),
            default="megatron",
            help="v1: whose names; legacy: Megatron's models before megatron-core [megatron].",
        ),
        click.option(
            "--expert-layout",
            type=click.Choice(("sequential", "grouped", "te")),
            default="sequential",
            help="v1: SequentialMLP, GroupedMLP or TEGroupedMLP [sequential].",
        ),
        click.option(
            "--transformer-impl",
            type=click.Choice(("local", "transformer_engine")),
            default="local",
            help="v1: whose layer spec [local].",
        ),
        click.option(
            "--mla-mm-split", is_flag=True, help="v1, mindspeed: MLA up projections in four."
        ),
        click.option(
            "--make-vocab-size-divisible-by",
            type=_COUNT,
            default=128,
            show_default=True,
            help="v1: vocabulary rows are padded to a multiple of this times tp.",
        ),
    )


def run_options() -> tuple[Decorator, ...]:
    """How a conversion runs."""
    return (
        click.option("--workers", type=_COUNT, default=1, help="Processes."),
        click.option("--resume", is_flag=True, help="Keep finished files of an interrupted run."),
        click.option("--overwrite", is_flag=True, help="Replace what llm-ckpt wrote there before."),
        click.option("--plan-only", is_flag=True, help="Print the plan and write nothing."),
    )


def apply(*groups: tuple[Decorator, ...]) -> Decorator:
    """One decorator that adds all options, in the order given."""

    def decorate(command: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate
