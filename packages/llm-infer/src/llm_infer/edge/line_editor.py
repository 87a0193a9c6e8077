"""Lines from the terminal, with editing and a history that outlives the program."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import click

_MAX_LINES = 1000


def lines(history: Path) -> Iterator[str]:
    """Non-blank lines until the end of the input; edited and kept where there is a terminal.

    Bytes that are not UTF-8 come as lone surrogates in any locale.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import readline

    # Keys of a terminal without arrow-key codes would be shown as text otherwise.
    readline.parse_and_bind("set enable-bracketed-paste on")
    _read(history)
    try:
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                click.echo()
                return
            if line:
                yield line
    finally:
        _write(history)


def _read(history: Path) -> None:
    import readline

    readline.clear_history()
    try:
        readline.read_history_file(history)
    except FileNotFoundError:
        return
    except OSError as error:
        click.echo(f"the history {history} cannot be read: {error.strerror}", err=True)


def _write(history: Path) -> None:
    import readline

    readline.set_history_length(_MAX_LINES)
    temporary = history.with_name(f".{history.name}.tmp")
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(temporary)
        temporary.replace(history)
    except OSError as error:
        click.echo(f"the history {history} cannot be kept: {error.strerror}", err=True)
