"""The architecture of the model a run names, read without importing torch where that can be."""

from __future__ import annotations

import json
from pathlib import Path

from llm_train.arch import Arch, ArchError, parse
from llm_train.config import ModelConfig

FILE_NAME = "arch.json"


def read_arch(model: ModelConfig) -> Arch:
    """Read the architecture from `model.arch`, or from the checkpoint at `model.load`.

    A Megatron checkpoint has its arch.json beside it; a Hugging Face folder is asked through the
    provider of weights.
    """
    if model.arch is not None:
        return _read(model.arch)
    assert model.load is not None
    if (model.load / FILE_NAME).is_file():
        return _read(model.load / FILE_NAME)
    # Late: it imports torch, which takes seconds.
    from llm_train.weights import arch_of, open_source

    return arch_of(open_source(model.load), where=model.load)


def read_document(path: Path) -> dict[str, object]:
    """The JSON object of an arch.json, or of the one in the folder `path`; not yet checked."""
    path = path / FILE_NAME if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArchError(f"{path}: no such file, wanted an arch.json") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArchError(f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ArchError(f"{path}: found a {type(document).__name__}, wanted a JSON object")
    return document


def _read(path: Path) -> Arch:
    return parse(read_document(path), where=str(path))
