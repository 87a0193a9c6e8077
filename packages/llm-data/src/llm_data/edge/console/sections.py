"""Options under headings, and options that take several values, as `argparse` has them."""

from collections.abc import Callable, Sequence
from functools import partial

import click

# `--help`, which click itself adds.
_OTHER = "Other options"


class SectionOption(click.Option):
    """An option with a heading. `several` takes every value up to the next option."""

    def __init__(
        self,
        declarations: Sequence[str] | None = None,
        *,
        section: str,
        several: bool = False,
        **attributes: object,
    ) -> None:
        self.section = section
        self.several = several
        super().__init__(declarations, **attributes)  # pyright: ignore[reportArgumentType] - click's own


class SectionCommand(click.Command):
    """A command whose help page has its options under their headings."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the name of an option before each of its several values."""
        several = {
            name
            for param in self.params
            if isinstance(param, SectionOption) and param.several
            for name in param.opts
        }
        return super().parse_args(ctx, _repeated(args, several))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A list of options under each heading, in the order of the headings' first options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                title = param.section if isinstance(param, SectionOption) else _OTHER
                sections.setdefault(title, []).append(record)
        sections[_OTHER] = sections.pop(_OTHER)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def section(title: str) -> Callable[..., Callable[[Callable[..., object]], Callable[..., object]]]:
    """`click.option` for options under one heading."""
    return partial(click.option, cls=SectionOption, section=title)


def _repeated(args: Sequence[str], several: set[str]) -> list[str]:
    """`--keys a b` as `--keys a --keys b`; `-` is a value, `-x` and `--x` are options."""
    found: list[str] = []
    current: str | None = None
    is_named = False
    for arg in args:
        if arg.startswith("--") or (len(arg) == 2 and arg[0] == "-" and arg[1].isalpha()):
            current, is_named = (arg, True) if arg in several else (None, False)
        elif current is not None and not is_named:
            found.append(current)
        else:
            is_named = False
        found.append(arg)
    return found
