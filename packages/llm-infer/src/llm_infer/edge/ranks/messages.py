"""What rank 0 tells the others, and what they answer."""

from dataclasses import dataclass
from pathlib import Path

from llm_infer.edge.choices import LoadOptions
from llm_infer.engines.tensor_parallel import Command


@dataclass(frozen=True, slots=True)
class Load:
    """Read your share of the weights, and answer."""

    folder: Path
    options: LoadOptions


@dataclass(frozen=True, slots=True)
class Join:
    """Meet the others by the store at a port; once, after `Load`."""

    port: int


Message = Load | Join | Command


@dataclass(frozen=True, slots=True)
class Loaded:
    """The weights are read."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Why this rank ends."""

    reason: str
