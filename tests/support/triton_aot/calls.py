"""Calls that make every Triton kernel take every tile it ships with."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llm_kernels_npu.parity import as_tuple
from llm_kernels_npu.select import load
from triton_aot.recording import Launch, recorded

WIDTHS = (64, 1024, 2048, 4096, 8192, 16_384, 20_480)
"""Features of a row: below every tile, at each, over the largest."""
TOKENS = 4096


def launches(operator: str, dtype: torch.dtype) -> dict[Launch, tuple[int, ...]]:
    """Every launch of an operator, forward and backward, with its grid."""
    with recorded() as found:
        for tensors, options in CALLS[operator](dtype):
            outputs = as_tuple(load(operator, "triton")[0](*tensors, **options))
            outputs = [out for out in outputs if out.requires_grad]
            leaves = [tensor for tensor in tensors if tensor.requires_grad]
            if leaves:
                torch.autograd.grad(outputs, leaves, [torch.empty_like(out) for out in outputs])
    return found


def first_of_each_kernel(operator: str, dtype: torch.dtype) -> list[Launch]:
    """One launch of every kernel of an operator: the one with its smallest tile."""
    firsts: dict[str, Launch] = {}
    for launch in launches(operator, dtype):
        firsts.setdefault(launch.name, launch)
    return list(firsts.values())


Call = tuple[tuple[Tensor, ...], dict[str, Any]]


def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor without memory that takes a gradient."""
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)


def _rms_norm(dtype: torch.dtype) -> Iterator[Call]:
    for width in WIDTHS:
        x, weight = leaf(TOKENS, width, dtype=dtype), leaf(width, dtype=dtype)
        yield (x, weight), {"eps": 1e-6}


def _gated(dtype: torch.dtype, **options: Any) -> Iterator[Call]:
    for width in WIDTHS:
        yield (leaf(TOKENS, 2 * width, dtype=dtype),), options


CALLS = {
    "rms_norm": _rms_norm,
    "swiglu": _gated,
}
