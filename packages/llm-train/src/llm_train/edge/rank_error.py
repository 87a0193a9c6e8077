"""How a rank tells its launcher why it ended: a small file, so that the first error shows first."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ERROR_FILE_VARIABLE = "LLM_TRAIN_ERROR_FILE"

# Packages whose own exception types are sentences for the user; others keep their traceback.
_WORDED = frozenset({"llm_train", "llm_ckpt", "llm_data", "llm_kernels_npu"})


class RunFailedError(Exception):
    """A run that ended for a reason its user can act on; its text is the whole message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankError:
    """Why a rank ended: `time_s` is seconds since 1970, `text` what its user should read."""

    time_s: float
    text: str


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turn an exception into `RunFailedError`, or in a launched rank into its error file.

    An exception of our own types is a sentence for the user; any other keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        path = os.environ.get(ERROR_FILE_VARIABLE)
        sentence = _sentence(error)
        if path is None:
            if sentence is None:
                raise
            raise RunFailedError(sentence) from error
        text = traceback.format_exc() if sentence is None else sentence
        write(Path(path), RankError(time_s=time.time(), text=text))
        # Not a normal exit: threads of a broken process group may never end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def write(path: Path, error: RankError) -> None:
    """Leave `error` at `path`, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps({"time_s": error.time_s, "text": error.text}), encoding="utf-8")
    temporary.replace(path)


def read(path: Path) -> RankError | None:
    """Read the error left at `path`; None when the rank left none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return RankError(time_s=record["time_s"], text=record["text"])


def _sentence(error: Exception) -> str | None:
    if type(error).__module__.partition(".")[0] in _WORDED:
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None
