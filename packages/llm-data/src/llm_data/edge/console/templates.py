"""The command that lists and renders chat templates."""

import sys
from pathlib import Path

import click

from llm_data.edge.console.support import PATH, reported
from llm_data.errors import UsageError


@click.command(epilog="Example: llm-data templates qwen3 --thinking off")
@click.argument("name", required=False, metavar="[NAME|FILE|hf]")
@click.option(
    "--tokenizer",
    type=PATH,
    metavar="DIR",
    help="Whose special tokens to show; hf is its own template.",
)
@click.option(
    "--thinking",
    type=click.Choice(["on", "off", "keep"]),
    default="keep",
    show_default=True,
    help="Thoughts: add an empty one and learn it, strip them, or keep them.",
)
@click.option("--date", metavar="YYYY-MM-DD", help="For a template that asks for today.")
def templates(name: str | None, tokenizer: Path | None, thinking: str, date: str | None) -> None:
    """List the chat templates, or render one: what is learned stands in colour or in ⟦ ⟧."""
    with reported():
        if name is None:
            from llm_data.edge.console.report import print_templates

            print_templates()
            return
        from llm_data.edge.console.template_report import (
            PLACEHOLDERS,
            parse_thinking,
            show_template,
        )
        from llm_data.edge.template_files import HF, find_template, read_special_tokens

        if name == HF and tokenizer is None:
            raise UsageError("hf is a tokenizer's own template: --tokenizer says whose")
        source = find_template(name, tokenizer=tokenizer or Path(), date=date)
        special = PLACEHOLDERS if tokenizer is None else read_special_tokens(tokenizer)
        is_colored = sys.stdout.isatty()
        text = show_template(
            source, special=special, thinking=parse_thinking(thinking), is_colored=is_colored
        )
        click.echo(text, color=is_colored)
