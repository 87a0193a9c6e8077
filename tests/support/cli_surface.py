"""The command line of all six packages as text, one golden file a package.

Run as a program it rewrites the golden files (`make snapshots`).
"""

import importlib
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cli"
PACKAGES = ("llm-ckpt", "llm-data", "llm-eval", "llm-infer", "llm-kernels-npu", "llm-train")
WIDTH = 100


def root_command(package: str) -> click.Command:
    """The click command behind a package's console script."""
    module = importlib.import_module(package.replace("-", "_") + ".cli")
    if isinstance(module.main, click.Command):
        return module.main
    groups = [value for value in vars(module).values() if isinstance(value, click.Group)]
    assert len(groups) == 1, f"{package}: cli.py must hold one click group, found {len(groups)}"
    return groups[0]


def commands(package: str) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    """Every command of a package: its words as typed, and a context to render it in."""
    root = root_command(package)
    yield from _walk((package,), click.Context(root, info_name=package, **_shape(root)))


def surface(package: str) -> str:
    """What `--help` prints for every command of a package, in one text."""
    parts = [f"$ {' '.join(words)} --help\n{help_text(ctx)}" for words, ctx in commands(package)]
    return "\n\n".join(parts) + "\n"


def help_text(context: click.Context) -> str:
    """The help page without the spaces click leaves at line ends."""
    lines = context.command.get_help(context).splitlines()
    return "\n".join(line.rstrip() for line in lines).rstrip()


def _walk(
    words: tuple[str, ...], context: click.Context
) -> Iterator[tuple[tuple[str, ...], click.Context]]:
    yield words, context
    if not isinstance(context.command, click.Group):
        return
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        if command is None or command.hidden:
            continue
        child = click.Context(command, info_name=name, parent=context, **_shape(command))
        yield from _walk((*words, name), child)


def _shape(command: click.Command) -> dict[str, object]:
    return {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}


def main() -> None:
    """Rewrite every golden file from the commands as they are."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        path = GOLDEN / f"{package}.txt"
        path.write_text(surface(package), encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
