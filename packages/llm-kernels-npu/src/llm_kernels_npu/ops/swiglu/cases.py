"""Calls of swiglu to compare and to time."""

from llm_kernels_npu.case import BenchSize, Case, label, normal


def case(*shape: int, scale: float = 1.0) -> Case:
    """Gate and up side by side in a tensor of that shape."""
    return Case(name=label(shape, scale=scale), build=normal(*shape, scale=scale))


CHECK = (case(3, 7, 64), case(5, 62, scale=20.0), case(2, 3, 1, 130))


def bench(size: BenchSize) -> Case:
    """A feed-forward four times as wide as the model."""
    return case(1, size.tokens, 2 * 4 * size.hidden)
