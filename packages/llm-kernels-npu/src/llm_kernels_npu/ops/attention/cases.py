"""Calls of attention to compare and to time."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from llm_kernels_npu.case import BenchSize, Case, Option, label

Extra = Literal["sinks", "mask", "bias"]

_FEATURES: Mapping[str, str] = MappingProxyType(
    {"window": "window", "softcap": "softcap", "cu_seqlens": "documents"}
)
"""What each option makes of a call."""


def case(
    batch: int,
    queries: int,
    keys: int,
    heads: int,
    groups: int,
    dim: int,
    *,
    extra: Extra | None = None,
    **options: Option,
) -> Case:
    """Q [B, T, H, D] over k and v [B, S, G, D], causal unless said otherwise.

    `extra` adds sinks, a boolean mask or a floating one (`bias`), whose second row is all hidden.
    """

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        q = torch.randn(batch, queries, heads, dim, generator=seed)
        k = torch.randn(batch, keys, groups, dim, generator=seed)
        v = torch.randn(batch, keys, groups, dim, generator=seed)
        seen = torch.rand(batch, 1, queries, keys, generator=seed) < 0.7
        seen[:, :, 1:2] = False
        extras = {
            "sinks": (torch.randn(heads, generator=seed),),
            "mask": (seen,),
            "bias": (torch.randn(1, heads, queries, keys, generator=seed).where(seen, -torch.inf),),
        }
        return (q, k, v, *(() if extra is None else extras[extra]))

    words = {} if extra is None else {"with": extra}
    keyword = "mask" if extra == "bias" else extra
    features = {feature for option, feature in _FEATURES.items() if option in options}
    return Case(
        name=label((batch, queries, keys, heads, groups, dim), **words, **options),
        build=build,
        options={"causal": True, **options},
        keywords=() if keyword is None else (keyword,),
        differentiable=4 if extra == "sinks" else 3,
        features=frozenset(features if extra is None else {*features, extra}),
    )


CHECK = (
    case(2, 33, 33, 4, 2, 16),
    case(1, 17, 17, 3, 1, 24, causal=False),
    case(1, 5, 29, 4, 4, 8),
    case(2, 1, 29, 4, 2, 16),
    case(1, 40, 40, 4, 2, 16, window=7),
    case(1, 6, 40, 4, 2, 16, window=11, scale=0.3),
    case(1, 19, 19, 4, 2, 16, softcap=5.0),
    case(2, 33, 33, 4, 2, 16, extra="sinks"),
    case(1, 6, 21, 4, 1, 16, extra="sinks", window=9, scale=0.3),
    case(1, 7, 13, 3, 3, 8, extra="sinks", causal=False),
    case(2, 9, 14, 4, 2, 16, extra="mask", causal=False),
    case(2, 14, 14, 4, 2, 16, extra="mask", window=5),
    case(2, 14, 14, 4, 2, 16, extra="bias"),
    case(2, 20, 20, 4, 2, 16, cu_seqlens=(0, 3, 3, 17, 20, 40)),
    case(1, 20, 26, 4, 2, 16, cu_seqlens=(0, 8, 20), cu_seqlens_k=(0, 12, 26), causal=False),
    case(1, 40, 40, 4, 2, 16, extra="sinks", window=4, cu_seqlens=(0, 11, 12, 40)),
)


def bench(size: BenchSize) -> Case:
    """Causal attention of a layer over one sequence."""
    return case(1, size.tokens, size.tokens, size.heads, size.groups, 128)
