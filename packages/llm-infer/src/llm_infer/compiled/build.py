"""The C sources of this package as a shared library, made once for each CPU and compiler.

It is kept in the user's cache (`$XDG_CACHE_HOME/llm-infer`, or `~/.cache/llm-infer`) under a name
that says what it was made of; where that cannot be written it is made anew in each process.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from llm_infer.errors import InferError

SOURCES = Path(__file__).parent / "source"
# The first that is there; $CC before them, as everywhere.
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fPIC", "-shared")
_TIME_LIMIT_S = 120
_SHOWN_LINES = 5


class CannotCompileError(InferError):
    """Why there is no such library on this machine."""


def load() -> ctypes.CDLL:
    """The library, made if it was not before. Raises CannotCompileError."""
    compiler, sources = _compiler(), sorted(SOURCES.glob("*.[ch]"))
    flags = (*_FLAGS, *_own_cpu())
    name = f"{_digest(compiler, flags, sources)}.so"
    folder = _folder()
    if folder is not None:
        path = folder / name
        if not path.exists():
            _compile(compiler, flags, sources, path)
        return _opened(path)
    with tempfile.TemporaryDirectory(prefix="llm-infer-") as scratch:
        path = Path(scratch) / name
        _compile(compiler, flags, sources, path)
        # What is loaded stays so when its file goes.
        return _opened(path)


def _compiler() -> list[str]:
    named = os.environ.get("CC")
    choices = [shlex.split(named)] if named else [[one] for one in _COMPILERS]
    for choice in choices:
        if choice and (found := shutil.which(choice[0])) is not None:
            return [found, *choice[1:]]
    tried = " ".join(choice[0] for choice in choices if choice)
    where = "named by $CC" if named else "on the search path"
    raise CannotCompileError(f"no C compiler: looked for {tried} {where}")


def _own_cpu() -> tuple[str, ...]:
    return ("-march=native",) if platform.machine() == "x86_64" else ("-mcpu=native",)


def _digest(compiler: list[str], flags: tuple[str, ...], sources: list[Path]) -> str:
    """Of all that the library depends on: it must not run on another CPU."""
    made_of = hashlib.sha256()
    facts = (*compiler, str(Path(compiler[0]).stat().st_mtime_ns), *flags, _cpu())
    for part in (*(fact.encode() for fact in facts), *(one.read_bytes() for one in sources)):
        made_of.update(len(part).to_bytes(8) + part)
    return made_of.hexdigest()[:32]


def _cpu() -> str:
    """What the machine's first processor is and can do."""
    described = Path("/proc/cpuinfo")
    if not described.is_file():
        return " ".join(platform.uname())
    kept = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    first = described.read_text(errors="replace").split("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.startswith(kept))


def _folder() -> Path | None:
    """A folder of this user's that none else can write; None where there is none."""
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(cache) if cache else Path.home() / ".cache") / "llm-infer"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = folder.stat()
    except (OSError, RuntimeError):
        return None
    is_own = state.st_uid == os.getuid() and not state.st_mode & 0o022
    return folder if is_own and os.access(folder, os.W_OK) else None


def _compile(compiler: list[str], flags: tuple[str, ...], sources: list[Path], path: Path) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    files = [str(one) for one in sources if one.suffix == ".c"]
    try:
        done = subprocess.run(
            [*compiler, *flags, "-o", str(unfinished), *files, "-lm"],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIME_LIMIT_S,
        )
        if done.returncode != 0:
            said = "\n".join(done.stderr.splitlines()[:_SHOWN_LINES])
            raise CannotCompileError(f"{shlex.join(compiler)} failed ({done.returncode}): {said}")
        unfinished.replace(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompileError(f"{shlex.join(compiler)}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _opened(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotCompileError(f"{path}: {error}") from error
