"""The JSON file that `bench` writes."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from llm_kernels_npu.timing import Timing


def write(path: Path, timings: Sequence[Timing]) -> None:
    """Write under a temporary name beside it, then rename: never half a file."""
    document = {
        "format": "llm-kernels-npu bench v1",
        "torch": torch.__version__,
        "timings": [dataclasses.asdict(timing) for timing in timings],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
