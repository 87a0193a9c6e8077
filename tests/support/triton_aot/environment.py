"""A virtual environment with triton-ascend and AscendNPU-IR, beside the project's.

triton-ascend and triton are both the folder `triton`, so one environment cannot have both. All else
(torch, pytest, our packages) is the project's own, found after what is here.
"""

import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / ".tools" / "venv-ascend"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


class NoEnvironmentError(RuntimeError):
    """The environment cannot be made here; the message says what is missing."""


def why_impossible() -> str | None:
    """Why triton-ascend has no package for this machine, or None."""
    here = (sys.platform, platform.machine(), sys.version_info[:2])
    if here == ("linux", "x86_64", (3, 11)):
        return None
    return (
        f"triton-ascend 3.2.0 and ascendnpu-ir 1.2.0 are for Linux x86_64, Python 3.11, not {here}"
    )


def ensure() -> Path:
    """Its Python, made or refreshed as requirements.txt says: 25 s with the fetching, else 1 s."""
    python = FOLDER / "bin" / "python"
    wanted = REQUIREMENTS.read_text()
    stamp = FOLDER / "requirements.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    # The project's own environment has one, as the lock says.
    uv = str(Path(sys.executable).with_name("uv"))
    _run(uv, "venv", "--clear", "--no-python-downloads", "--python", sys.executable, str(FOLDER))
    _run(uv, "pip", "install", "--python", str(python), "--require-hashes", "-r", str(REQUIREMENTS))
    site = FOLDER / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    ours = sysconfig.get_paths()["purelib"]
    (site / "site-packages" / "project.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    stamp.write_text(wanted)
    return python


def run(*arguments: str, timeout_s: float = 800) -> "subprocess.CompletedProcess[str]":
    """Run that Python with those arguments; its output is captured as text."""
    drop = {"PYTHONPATH", "TRITON_INTERPRET"}
    kept = {key: value for key, value in os.environ.items() if key not in drop}
    return subprocess.run(
        [str(ensure()), *arguments],
        # Loaded by torch where it is installed, it wants CANN.
        env={**kept, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "TRITON_AOT_ASCEND": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _run(*command: str) -> None:
    # Outside the workspace, whose constraints are not for this environment.
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoEnvironmentError(f"{' '.join(command)} failed:\n{done.stderr}")
