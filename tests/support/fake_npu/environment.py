"""A virtual environment with torch_npu, beside the project's, and how to run in it."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fake_npu import cann

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / ".tools" / "venv-npu"
SUPPORT = ROOT / "tests" / "support"


class NoEnvironmentError(RuntimeError):
    """The environment cannot be made here; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A Python that has torch_npu, and the variables that give it a fake device."""

    python: Path
    variables: Mapping[str, str]

    def run(
        self, *arguments: str, devices: int = 1, timeout_s: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        """Run this Python with those arguments; its output is captured as text."""
        return subprocess.run(
            [str(self.python), *arguments],
            env={**os.environ, **self.variables, "FAKE_NPU_COUNT": str(devices)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def ensure() -> Environment:
    """Make or refresh the environment as uv.lock says, and compile the stub libraries.

    Some seconds when uv has the packages in its cache; torch-npu is 39 MB to fetch.
    """
    for tool in ("gcc", "nm"):
        if shutil.which(tool) is None:
            raise NoEnvironmentError(f"the fake NPU needs {tool}: apt-get install gcc binutils")
    python = FOLDER / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    package = FOLDER / "lib" / version / "site-packages" / "torch_npu"
    FOLDER.parent.mkdir(exist_ok=True)
    with FOLDER.with_suffix(".lock").open("w") as lock:
        # Two workers' tests may ask for it at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _sync()
        libraries = cann.build(package, FOLDER / "fake-cann")
    return Environment(python=python, variables=_variables(libraries))


def _sync() -> None:
    beside = Path(sys.executable).with_name("uv")  # a development dependency
    uv = shutil.which("uv") or str(beside)
    if not Path(uv).exists():
        raise NoEnvironmentError(f"no uv on PATH nor at {uv}: make setup brings one")
    command = [uv, "sync", "--frozen", "--all-packages", "--extra", "npu"]
    drop = {"VIRTUAL_ENV", "UV_PYTHON", "PYTHONHOME", "PYTHONPATH"}
    kept = {key: value for key, value in os.environ.items() if key not in drop}
    done = subprocess.run(
        [*command, "--no-python-downloads", "--python", sys.executable],
        cwd=ROOT,
        env={**kept, "UV_PROJECT_ENVIRONMENT": str(FOLDER)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NoEnvironmentError(f"{' '.join(command)} failed:\n{done.stderr}")


def _variables(libraries: Path) -> dict[str, str]:
    return {
        "LD_LIBRARY_PATH": str(libraries),
        "PYTHONPATH": f"{SUPPORT / 'fake_npu' / 'site'}:{SUPPORT}",
        # Without these two, launches are queued and an error comes after its result was read.
        "ASCEND_LAUNCH_BLOCKING": "1",
        "TASK_QUEUE_ENABLE": "0",
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
