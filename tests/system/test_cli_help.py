"""The command-line surface: help pages as agreed, each with an example, without heavy imports."""

import difflib
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli_surface import GOLDEN, PACKAGES, commands, help_text, surface

BIN = Path(sys.executable).parent
# What would make help slow; `benchmarks/startup.py` tells the time it takes.
HEAVY = ("torch", "transformers", "pyarrow", "lm_eval", "megatron", "matplotlib")


@pytest.mark.parametrize("package", PACKAGES)
def test_help_pages_match_the_golden_file(package: str) -> None:
    golden = GOLDEN / f"{package}.txt"
    agreed = golden.read_text(encoding="utf-8") if golden.exists() else ""
    found = surface(package)
    difference = difflib.unified_diff(
        agreed.splitlines(), found.splitlines(), f"agreed {golden.name}", "found", lineterm=""
    )
    assert found == agreed, "run `make snapshots` if this is meant:\n" + "\n".join(difference)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_command_shows_an_example_to_copy(package: str) -> None:
    for words, context in commands(package):
        if isinstance(context.command, click.Group):
            continue  # it only lists the commands that do something
        typed = re.escape(" ".join(words))
        example = re.compile(rf"^\s+(?:\w+: |\$ |`)?{typed}( \S|`?$)", re.MULTILINE)
        # The usage line is no example: it starts the page and holds placeholders.
        body = help_text(context).split("\n", 1)[1]
        assert example.search(body), f"`{' '.join(words)} --help` holds no example line:\n{body}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_help_page_shows_a_formatting_mark(package: str) -> None:
    # A raw docstring turns click's mark for "do not rewrap" into the two letters themselves.
    assert "\\b" not in surface(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_command_line_loads_no_heavy_library(package: str) -> None:
    module = package.replace("-", "_")
    code = f"import sys, {module}, {module}.cli; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in loaded
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_command_is_a_usage_error(package: str) -> None:
    finished = subprocess.run(
        [str(BIN / package), "no-such-command"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert "no-such-command" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_the_command_tells_its_version(package: str) -> None:
    from importlib.metadata import version

    finished = subprocess.run(
        [str(BIN / package), "--version"], capture_output=True, text=True, check=True
    )
    assert version(package) in finished.stdout
