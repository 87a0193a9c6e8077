"""What the repository says about itself is true: README, map, packages, variables, hosts."""

import ast
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from cli_surface import PACKAGES, ROOT, commands

README = (ROOT / "README.md").read_text(encoding="utf-8")
READMES = ("README.md", "CONTRIBUTING.md", *(f"packages/{name}/README.md" for name in PACKAGES))
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{3,}")


def tracked() -> list[Path]:
    """The files of the repository, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def shell_lines(text: str) -> Iterator[list[str]]:
    """The words of every command in a page: in shell fences, indented, or between backticks."""
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language in ("", "bash", "sh", "console"):
            lines += body.replace("\\\n", " ").splitlines()
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`([^`\n]+ [^`\n]+)`", outside)
    for line in lines:
        if line.removeprefix("$ ").split(" ")[0] in (*PACKAGES, "make", "python"):
            yield shlex.split(line.removeprefix("$ "), comments=True)


def section(title: str) -> str:
    """The text under a heading of README.md, up to the next heading of its level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    assert found, f"README.md has no section {title!r}"
    return found[1]


@pytest.mark.parametrize("package", PACKAGES)
def test_package_has_what_a_package_needs(package: str) -> None:
    folder = ROOT / "packages" / package
    facts = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module = package.replace("-", "_")
    assert re.fullmatch(r"\d+\.\d+\.\d+", facts["version"])
    assert (folder / "src" / module / "py.typed").exists()
    assert f"## {facts['version']}" in (folder / "CHANGELOG.md").read_text(encoding="utf-8")
    assert facts["scripts"] == {package: f"{module}.cli:main"}
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert any(words[0] == package for words in shell_lines(readme)), "no example in its README"


def test_the_tour_is_what_the_quickstart_runs() -> None:
    printed = subprocess.run(
        ["examples/quickstart.sh", "--print"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    run = [shlex.split(line) for line in printed.stdout.splitlines()]
    told = [words for words in shell_lines(section("60-second tour")) if words[0] != "make"]
    assert told == run


def test_make_targets_in_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in READMES:
        text = (ROOT / page).read_text(encoding="utf-8")
        named = set(re.findall(r"`make ([a-z-]+)", text))
        named |= {words[1] for words in shell_lines(text) if words[0] == "make"}
        assert named <= targets, f"{page}: no such target: {sorted(named - targets)}"


@pytest.mark.parametrize("page", READMES)
def test_commands_in_pages_exist_with_their_options(page: str) -> None:
    known = {words: ctx.command for package in PACKAGES for words, ctx in commands(package)}
    for words in shell_lines((ROOT / page).read_text(encoding="utf-8")):
        if words[0] not in PACKAGES:
            continue
        path = (words[0],)
        while len(path) < len(words) and (*path, words[len(path)]) in known:
            path = (*path, words[len(path)])
        command = known[path]
        is_group = isinstance(command, click.Group)
        options = {"--help"}.union(*(one.opts + one.secondary_opts for one in command.params))
        options |= getattr(command, "aliases", frozenset())
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert not is_group or used, f"{page}: {shlex.join(words)}: {' '.join(path)} is no command"
        assert used <= options, f"{page}: {shlex.join(words)}: unknown {sorted(used - options)}"


def test_the_map_lists_every_folder() -> None:
    listed = set(re.findall(r"^\| `([^`]+)/` ", section("Map"), re.MULTILINE))
    deep = ("packages", "tests", "examples")
    found: set[str] = set()
    for path in tracked():
        folders = path.parts[:-1]
        if folders:
            found.add("/".join(folders[:2]) if folders[0] in deep else folders[0])
    assert listed == found - set(deep) | {"examples"}


def test_only_the_lock_names_a_package_index() -> None:
    lock = (ROOT / "uv.lock").read_text(encoding="utf-8")
    hosts = {urlsplit(url).hostname for url in re.findall(r'https?://[^"]+', lock)}
    assert hosts
    for path in tracked():
        if path.name == "uv.lock":
            continue
        text = (ROOT / path).read_bytes().decode("utf-8", errors="replace")
        assert not [host for host in hosts if host and host in text], path


def test_the_type_checker_is_given_folders_that_exist() -> None:
    # It takes a pattern that matches nothing for success, having checked nothing.
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pyright = settings["tool"]["pyright"]
    assert "packages" in pyright["include"]
    for name in (*pyright["include"], *pyright["strict"]):
        assert any(ROOT.glob(name)), f"[tool.pyright]: no {name}"


def test_environment_variables_are_listed() -> None:
    sources = [path for path in tracked() if "src" in path.parts and path.suffix == ".py"]
    named = {name: str(path) for path in sources for name in variables(ROOT / path)}
    assert named
    listed = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", section("Environment variables")))
    assert not {name: path for name, path in named.items() if name not in listed}


def variables(path: Path) -> set[str]:
    """The literals that look like variable names in a file that touches the environment."""
    text = path.read_text(encoding="utf-8")
    if "environ" not in text:
        return set()
    literals = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return {one for one in literals if isinstance(one, str) and VARIABLE.fullmatch(one)}
