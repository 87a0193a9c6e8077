"""Lines on stderr beside a result, which is wanted whether anybody reads them or not."""

from contextlib import suppress

import click


def note(line: str, *, is_dim: bool = False) -> None:
    """Say it; nothing happens where stderr is a pipe that nobody reads any more."""
    with suppress(BrokenPipeError):
        click.secho(line, dim=is_dim or None, err=True)
