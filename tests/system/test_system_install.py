"""Each package, installed alone from its wheel into an empty environment, does its job.

The versions are those of uv.lock, so that the packages come out of uv's cache.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli_surface import PACKAGES, ROOT

UV = str(Path(sys.executable).with_name("uv"))
# What a package must not bring: nobody who only prepares data should fetch 5 GB of CUDA.
WITHOUT_TORCH = ("llm-data", "llm-eval")


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment that holds one of our packages and what it asked for."""

    python: Path

    def command(self, name: str) -> str:
        return str(self.python.with_name(name))

    def packages(self) -> set[str]:
        listed = run(UV, "pip", "list", "--format", "json", "--python", str(self.python))
        return {one["name"] for one in json.loads(listed)}


def run(*command: str) -> str:
    """The standard output of a command that must succeed."""
    finished = attempt(command, {})
    if finished.returncode != 0 and command[0] == UV:
        # As .ci/bootstrap.py does: behind a proxy only the machine's own certificates are good.
        finished = attempt(command, {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"})
    assert finished.returncode == 0, f"{' '.join(command)}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout


def attempt(
    command: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    merged = {**os.environ, **environment}
    return subprocess.run(
        command, cwd=ROOT, env=merged, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    what = ("--wheel", "--no-sources", "--all-packages", "--out-dir", str(folder))
    run(UV, "build", "--quiet", "--python", sys.executable, *what)
    built = {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}
    assert set(built) == set(PACKAGES)
    return built


def install_alone(wheel: Path, package: str, folder: Path) -> Environment:
    """An empty environment with one wheel in it, everything else at its locked version."""
    export = ("export", "--frozen", "--package", package, "--no-emit-workspace", "--no-hashes")
    pins = folder / "pins.txt"
    pins.write_text(run(UV, *export, "--no-dev"), encoding="utf-8")
    run(UV, "venv", "--quiet", "--python", sys.executable, str(folder / "venv"))
    environment = Environment(folder / "venv" / "bin" / "python")
    # Links into uv's cache: torch alone is 5 GB, and the cache may be on another disk.
    how = ("--link-mode", "symlink", "--constraints", str(pins))
    run(UV, "pip", "install", "--quiet", "--python", str(environment.python), *how, str(wheel))
    return environment


def test_wheels_hold_the_type_marker_and_no_tests(wheels: dict[str, Path]) -> None:
    for package, wheel in wheels.items():
        names = zipfile.ZipFile(wheel).namelist()
        module = package.replace("-", "_")
        assert f"{module}/py.typed" in names
        tops = {name.split("/")[0] for name in names}
        assert len(tops) == 2, f"{wheel.name}: wanted {module} and its metadata, found {tops}"
        assert module in tops


@pytest.mark.parametrize("package", PACKAGES)
def test_package_installs_alone(package: str, wheels: dict[str, Path], tmp_path: Path) -> None:
    environment = install_alone(wheels[package], package, tmp_path)
    installed = environment.packages()
    assert package in installed
    assert not (set(PACKAGES) - {package}) & installed
    assert ("torch" in installed) == (package not in WITHOUT_TORCH)
    assert "Usage:" in run(environment.command(package), "--help")


def test_installed_llm_data_turns_text_into_tokens(wheels: dict[str, Path], tmp_path: Path) -> None:
    environment = install_alone(wheels["llm-data"], "llm-data", tmp_path)
    command = environment.command("llm-data")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("six packages, one command each\n" * 50)
    text, tokenizer, data = (str(tmp_path / name) for name in ("text", "tokenizer", "data"))
    run(command, "train-tokenizer", text, "--vocab-size", "300", "--output", tokenizer)
    run(command, "preprocess", text, "--tokenizer", tokenizer, "--output", data)
    run(command, "verify", f"{data}_text_document")
