"""Options that commands share, and errors as the command line shows them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click

from llm_data.errors import DataError, UsageError

_Command = TypeVar("_Command", bound=Callable[..., object])

PATH = click.Path(path_type=Path)

_READING = (
    click.argument("inputs", nargs=-1, type=PATH, metavar="INPUT..."),
    click.option(
        "--key",
        "--json-keys",
        "key",
        default="text",
        show_default=True,
        help="The key or column that holds the text.",
    ),
    click.option(
        "--pattern",
        "patterns",
        multiple=True,
        metavar="GLOB",
        help="Take only such files from folders; unknown suffixes are read as text. Repeatable.",
    ),
    click.option(
        "--on-error",
        type=click.Choice(["stop", "skip"]),
        default="stop",
        show_default=True,
        help="A record that cannot be read: stop, or leave it out and count it.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace what another run left there."),
)

TOKENIZER = click.option(
    "--tokenizer",
    "--tokenizer-name-or-path",
    "tokenizer",
    type=PATH,
    required=True,
    metavar="DIR|FILE",
    help="A folder with tokenizer.json, or the file.",
)


def reading(command: _Command) -> _Command:
    """INPUT and the options of every command that reads it."""
    for option in reversed(_READING):
        command = option(command)
    return command


@contextmanager
def reported() -> Iterator[None]:
    """Turn what a user or a file got wrong into `Error: …` and its exit code."""
    try:
        yield
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    except DataError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{where}{error.strerror or error}") from None
