"""The JSON file that `bench` writes."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from llm_kernels_npu.timing import Timing


def write(path: Path, timings: Sequence[Timing]) -> None:
    """Write the timings and torch's version as JSON."""
    document = {
        "format": "llm-kernels-npu bench v1",
        "torch": torch.__version__,
        "timings": [dataclasses.asdict(timing) for timing in timings],
    }
    replace(path, (json.dumps(document, indent=1) + "\n").encode())


def replace(path: Path, content: bytes) -> None:
    """Write under a temporary name beside it, then rename: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
