"""Inputs for parity and timing: odd sizes, edges of the operators' domains, real sizes."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

Build = Callable[[torch.Generator], tuple[Tensor, ...]]
Option = float | int | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call of an operator: how to make its tensors, and its options.

    Tensors are made in float32 on the CPU, so that every device and dtype sees the same values.
    """

    name: str
    build: Build
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])
    differentiable: int = 1
    """How many of the leading tensors take gradients."""
    features: frozenset[str] = frozenset()


def _normal(*shape: int, scale: float = 1.0) -> Build:
    return lambda seed: (torch.randn(*shape, generator=seed) * scale,)


def _rms_norm(*shape: int, scale: float = 1.0, **options: float) -> Case:
    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        weight = 1 + 0.1 * torch.randn(shape[-1], generator=seed)
        return torch.randn(*shape, generator=seed) * scale, weight

    name = _label(shape, scale=scale, **options)
    return Case(name=name, build=build, options={"eps": 1e-6, **options}, differentiable=2)


def _swiglu(*shape: int, scale: float = 1.0) -> Case:
    return Case(name=_label(shape, scale=scale), build=_normal(*shape, scale=scale))


def _rope(batch: int, length: int, heads: int, dim: int, *, rotary: int, interleaved: bool) -> Case:
    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        x = torch.randn(batch, length, heads, dim, generator=seed)
        return x, *rope_tables(length, rotary, interleaved=interleaved)

    name = _label((batch, length, heads, dim), rotary=rotary, interleaved=interleaved)
    return Case(name=name, build=build, options={"interleaved": interleaved})


def rope_tables(length: int, rotary_dim: int, *, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Cosine and sine [1, T, 1, R] of base 10,000 for positions 0 … T − 1."""
    frequencies = 10_000 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    angles = torch.arange(length)[:, None] * frequencies
    angles = angles.repeat_interleave(2, dim=-1) if interleaved else torch.cat((angles,) * 2, -1)
    return angles.cos()[None, :, None], angles.sin()[None, :, None]


def _cross_entropy(
    rows: int, vocab: int, *, scale: float = 1.0, ignore_every: int = 3, **options: int
) -> Case:
    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        logits = torch.randn(rows, vocab, generator=seed) * scale
        return logits, _targets(rows, vocab, ignore_every=ignore_every, seed=seed, **options)

    name = _label((rows, vocab), scale=scale, ignore_every=ignore_every, **options)
    return Case(name=name, build=build, options=options)


def _linear_cross_entropy(
    rows: int, hidden: int, vocab: int, *, ignore_every: int = 3, **options: int
) -> Case:
    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        x = torch.randn(rows, hidden, generator=seed)
        weight = torch.randn(vocab, hidden, generator=seed) / math.sqrt(hidden)
        targets = _targets(rows, vocab, ignore_every=ignore_every, seed=seed, **options)
        return x, weight, targets

    name = _label((rows, hidden, vocab), ignore_every=ignore_every, **options)
    return Case(name=name, build=build, options=options, differentiable=2)


def _targets(
    rows: int, vocab: int, *, ignore_every: int, seed: torch.Generator, ignore_index: int = -100
) -> Tensor:
    targets = torch.randint(vocab, (rows,), generator=seed)
    targets[::ignore_every] = ignore_index
    return targets


def _attention(
    batch: int, queries: int, keys: int, heads: int, groups: int, dim: int, **options: Option
) -> Case:
    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        q = torch.randn(batch, queries, heads, dim, generator=seed)
        k = torch.randn(batch, keys, groups, dim, generator=seed)
        return q, k, torch.randn(batch, keys, groups, dim, generator=seed)

    return Case(
        name=_label((batch, queries, keys, heads, groups, dim), **options),
        build=build,
        options={"causal": True, **options},
        differentiable=3,
        features=frozenset({"window", "softcap"} & options.keys()),
    )


def _label(shape: tuple[int, ...], **options: object) -> str:
    shown = [f"{key}={value}" for key, value in options.items() if (key, value) != ("scale", 1.0)]
    return " ".join(("x".join(map(str, shape)), *shown))


CHECK_CASES: Mapping[str, tuple[Case, ...]] = MappingProxyType(
    {
        "rms_norm": (
            _rms_norm(3, 7, 64),
            _rms_norm(5, 63, offset=1.0),
            _rms_norm(2, 3, 5, 129, scale=1e-4),
            _rms_norm(2, 33, scale=300.0),
        ),
        "swiglu": (_swiglu(3, 7, 64), _swiglu(5, 62, scale=20.0), _swiglu(2, 3, 1, 130)),
        "rope": tuple(
            _rope(2, 9, 3, 32, rotary=rotary, interleaved=interleaved)
            for rotary in (32, 20, 2)
            for interleaved in (False, True)
        ),
        "cross_entropy": (
            _cross_entropy(7, 33),
            _cross_entropy(63, 1009, scale=30.0),
            _cross_entropy(5, 17, ignore_every=1),
            _cross_entropy(8, 17, ignore_index=5),
        ),
        "linear_cross_entropy": (
            _linear_cross_entropy(7, 16, 33),
            _linear_cross_entropy(130, 24, 211),
            _linear_cross_entropy(5, 8, 17, ignore_every=1),
            _linear_cross_entropy(8, 4, 17, ignore_index=5),
        ),
        "attention": (
            _attention(2, 33, 33, 4, 2, 16),
            _attention(1, 17, 17, 3, 1, 24, causal=False),
            _attention(1, 5, 29, 4, 4, 8),
            _attention(2, 1, 29, 4, 2, 16),
            _attention(1, 40, 40, 4, 2, 16, window=7),
            _attention(1, 6, 40, 4, 2, 16, window=11, scale=0.3),
            _attention(1, 19, 19, 4, 2, 16, softcap=5.0),
        ),
    }
)
"""Small and odd: what `check` compares and the tests use."""


def bench_cases(name: str, *, device: str) -> Iterator[Case]:
    """Sizes of a real model's layers, smaller on a CPU."""
    on_cpu = device == "cpu"
    tokens = 512 if on_cpu else 4096
    for hidden in (1024,) if on_cpu else (2048, 4096, 8192):
        heads, vocab = hidden // 128, 8_192 if on_cpu else 32_768
        yield {
            "rms_norm": _rms_norm(1, tokens, hidden),
            "swiglu": _swiglu(1, tokens, 2 * 4 * hidden),
            "rope": _rope(1, tokens, heads, 128, rotary=128, interleaved=False),
            "cross_entropy": _cross_entropy(tokens, vocab),
            "linear_cross_entropy": _linear_cross_entropy(tokens, hidden, vocab),
            "attention": _attention(1, tokens, tokens, heads, max(1, heads // 4), 128),
        }[name]
