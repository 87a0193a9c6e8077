"""The operators' calls to compare and to time: `ops/<operator>/cases.py` of each."""

import importlib
from collections.abc import Iterator

from llm_kernels_npu.case import BenchSize, Case


def check_cases(name: str) -> tuple[Case, ...]:
    """Small and odd: what `check` compares and the tests use."""
    return importlib.import_module(f"llm_kernels_npu.ops.{name}.cases").CHECK


def bench_cases(name: str, *, device: str) -> Iterator[Case]:
    """Sizes of a real model's layers, smaller on a CPU."""
    on_cpu = device == "cpu"
    bench = importlib.import_module(f"llm_kernels_npu.ops.{name}.cases").bench
    for hidden in (1024,) if on_cpu else (2048, 4096, 8192):
        tokens, vocab = (512, 8_192) if on_cpu else (4096, 32_768)
        yield bench(BenchSize(tokens=tokens, hidden=hidden, vocab=vocab))
