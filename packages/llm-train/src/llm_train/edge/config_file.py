"""A run's YAML file on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_train.config import RunConfig
from llm_train.config_parse import parse
from llm_train.edge.inputs import with_boundaries
from llm_train.overrides import ConfigError, read_document


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the run that the YAML file at `path`, changed by `key=value` overrides, describes.

    Packed sample datasets that it names have their boundaries kept.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; wanted a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}") from None
    return with_boundaries(parse(read_document(text, str(path)), overrides, str(path)))
