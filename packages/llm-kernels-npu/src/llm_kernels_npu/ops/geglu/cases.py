"""Calls of geglu to compare and to time."""

from llm_kernels_npu.case import BenchSize, Case, label, normal


def case(*shape: int, scale: float = 1.0, **options: str) -> Case:
    """Gate and up side by side in a tensor of that shape."""
    name = label(shape, scale=scale, **options)
    return Case(name=name, build=normal(*shape, scale=scale), options=options)


CHECK = (
    case(3, 7, 64),
    case(3, 7, 64, approximate="tanh"),
    case(5, 62, scale=5.0),
    case(2, 3, 1, 130, scale=5.0, approximate="tanh"),
)


def bench(size: BenchSize) -> Case:
    """A feed-forward four times as wide as the model."""
    return case(1, size.tokens, 2 * 4 * size.hidden, approximate="tanh")
