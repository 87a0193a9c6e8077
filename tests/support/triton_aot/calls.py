"""Calls that make every Triton kernel take every tile it ships with."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llm_kernels_npu.parity import as_tuple
from llm_kernels_npu.select import load
from triton_aot.recording import Launch, recorded

WIDTHS = (64, 1024, 2048, 4096, 8192, 16_384, 20_480)
"""Features of a row: below every tile, at each, over the largest."""
TOKENS = 4096
TILES = frozenset(
    {
        "TILE",
        "HALF",
        "PASSING",
        "ROWS",
        "COLUMNS",
        "KEYS",
        "DIM",
        "VALUE_DIM",
        "CHUNK",
        "KEY",
        "VALUE",
    }
)
"""Constants that are sizes; the others choose what a kernel does."""


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


def first_of_each_kernel(
    operator: str, dtype: torch.dtype, *, variants: bool = True
) -> list[Launch]:
    """One launch of every kernel an operator has (of each of its variants): the smallest tile."""
    firsts: dict[tuple[object, ...], Launch] = {}
    for launch in launches(operator, dtype):
        flags = tuple(value for key, value in launch.constants if key not in TILES)
        firsts.setdefault((launch.kernel, flags if variants else ()), launch)
    return list(firsts.values())


Call = tuple[tuple[Tensor, ...], dict[str, Any]]


def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor without memory that takes a gradient."""
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)


def _norm(dtype: torch.dtype, *, like_x: int = 1, vectors: int = 1) -> Iterator[Call]:
    """Tensors like x, then vectors as wide as a row."""
    for width in WIDTHS:
        shapes = [(TOKENS, width)] * like_x + [(width,)] * vectors
        yield tuple(leaf(*shape, dtype=dtype) for shape in shapes), {"eps": 1e-6}


def _gated(dtype: torch.dtype, **options: Any) -> Iterator[Call]:
    for width in WIDTHS:
        yield (leaf(TOKENS, 2 * width, dtype=dtype),), options


def _geglu(dtype: torch.dtype) -> Iterator[Call]:
    for approximate in ("none", "tanh"):
        yield from _gated(dtype, approximate=approximate)


def _losses(dtype: torch.dtype) -> Iterator[Call]:
    for vocab in (512, 4096, 32_768, 152_064):
        yield (leaf(256, vocab, dtype=dtype), _targets(256)), {}


def _linear_losses(dtype: torch.dtype) -> Iterator[Call]:
    hidden, weight = leaf(TOKENS, 1024, dtype=dtype), leaf(152_064, 1024, dtype=dtype)
    yield (hidden, weight, _targets(TOKENS)), {}


def _targets(rows: int) -> Tensor:
    return torch.empty(rows, dtype=torch.int64, device="meta")


def _rope(dtype: torch.dtype) -> Iterator[Call]:
    for heads, dim, rotary in ((32, 128, 128), (1, 128, 64), (8, 256, 256), (16, 192, 64)):
        table = torch.empty(1, TOKENS, 1, rotary, dtype=torch.float32, device="meta")
        for interleaved in (False, True):
            x = leaf(1, TOKENS, heads, dim, dtype=dtype)
            yield (x, table, table), {"interleaved": interleaved}


def _attention(dtype: torch.dtype) -> Iterator[Call]:
    for dim, value_dim in ((64, 64), (128, 128), (192, 128), (256, 256)):
        q = leaf(1, TOKENS, 8, dim, dtype=dtype)
        k, v = leaf(1, TOKENS, 2, dim, dtype=dtype), leaf(1, TOKENS, 2, value_dim, dtype=dtype)
        yield (q, k, v), {"causal": True}
    q, k, v = (leaf(1, TOKENS, heads, 128, dtype=dtype) for heads in (8, 2, 2))
    yield (q, k, v), {"causal": False}
    yield (q, k, v), {"causal": True, "window": 1024, "softcap": 50.0}
    sinks = leaf(8, dtype=dtype)
    yield (q, k, v), {"causal": True, "window": 128, "sinks": sinks}


def _adamw(dtype: torch.dtype) -> Iterator[Call]:
    settings = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    for size in (64, 1024, 1 << 24):
        param, exp_avg, exp_avg_sq = torch.empty(3, size, device="meta").unbind()
        grad = torch.empty(size, dtype=dtype, device="meta")
        yield (param, grad, exp_avg, exp_avg_sq), {"step": 7, **settings}


def _convolutions(dtype: torch.dtype) -> Iterator[Call]:
    """With all that a call can have, of a layer's channels and of the most taps; and plain."""
    for channels, width in ((8192, 4), (128, 8)):
        x, weight = leaf(1, TOKENS, channels, dtype=dtype), leaf(channels, width, dtype=dtype)
        bias, state = leaf(channels, dtype=dtype), leaf(1, width - 1, channels, dtype=dtype)
        yield (x, weight, bias, state), {"activation": "silu"}
    yield (leaf(1, TOKENS, 64, dtype=dtype), leaf(64, 4, dtype=dtype)), {}


def _scans(dtype: torch.dtype) -> Iterator[Call]:
    """Few states with an initial one, Mamba-2's own sizes without, and the largest."""
    for features, states, has_state in ((64, 64, True), (64, 128, False), (256, 256, True)):
        x, dt = leaf(1, 512, 4, features, dtype=dtype), leaf(1, 512, 4, dtype=dtype)
        b, c = (leaf(1, 512, 1, states, dtype=dtype) for _ in range(2))
        rest = (leaf(4, dtype=dtype), leaf(1, 4, features, states, dtype=dtype))
        yield (x, dt, leaf(4, dtype=dtype), b, c, *(rest if has_state else ())), {}


def _delta_rules(dtype: torch.dtype) -> Iterator[Call]:
    """Small heads with an initial state, Qwen3-Next's without, and the largest."""
    for dim, has_state in ((64, True), (128, False), (256, True)):
        q, k = (leaf(1, 512, 2, dim, dtype=dtype) for _ in range(2))
        v, state = leaf(1, 512, 4, dim, dtype=dtype), leaf(1, 4, dim, dim, dtype=dtype)
        gates = (leaf(1, 512, 4, dtype=dtype) for _ in range(2))
        yield (q, k, v, *gates, *((state,) if has_state else ())), {}


CALLS: Mapping[str, Callable[[torch.dtype], Iterable[Call]]] = {
    "rms_norm": _norm,
    "add_rms_norm": partial(_norm, like_x=2),
    "layer_norm": partial(_norm, vectors=2),
    "swiglu": _gated,
    "geglu": _geglu,
    "cross_entropy": _losses,
    "linear_cross_entropy": _linear_losses,
    "adamw": _adamw,
    "rope": _rope,
    "attention": _attention,
    "causal_conv1d": _convolutions,
    "gated_delta_rule": _delta_rules,
    "mamba2_scan": _scans,
}
LONG = frozenset({"attention", "causal_conv1d", "gated_delta_rule", "mamba2_scan"})
"""Operators that the Ascend compiler takes long for: the default tests compile one tile of each."""
