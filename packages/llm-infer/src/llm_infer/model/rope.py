"""Rotary positions as tables of cosines and sines."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from llm_infer.arch import (
    Arch,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)
from llm_infer.model.rowwise import by_row

Frequencies = tuple[Tensor, float]
"""Inverse frequencies [width / 2] and what cosines and sines are multiplied by."""


class Rotation(Protocol):
    """Cosines and sines of positions, which may be others in texts of other lengths."""

    def at(self, positions_T: Tensor, variants_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both tables [T, 1, width] at positions, of texts that rotate by a variant each."""
        ...


class GrowingRope:
    """Dynamic scaling: with a text's length its rotary base grows, as in transformers.

    All tokens of a prompt turn by the base for its length, each later token by the one for the
    length that the text has with it. What lies in the cache is not turned again.
    """

    def __init__(self, arch: Arch, *, width: int, context: int, device: torch.device) -> None:
        assert isinstance(arch.position, Rope)
        assert isinstance(arch.position.scaling, LinearScaling)
        self._interleaved, self._trained = arch.position.interleaved, arch.max_position_embeddings
        factor, base = arch.position.scaling.factor, arch.position.base
        lengths_L = torch.arange(self._trained, max(context, self._trained) + 1)
        growth_L = factor * lengths_L / self._trained - (factor - 1)
        bases_L1 = base * growth_L[:, None] ** (width / (width - 2))
        # [lengths from the trained one on, width / 2]
        self._inverse = (1.0 / bases_L1 ** (torch.arange(0, width, 2).float() / width)).to(device)

    def at(self, positions_T: Tensor, variants_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Rotation`; variants are the lengths of prompts."""
        lengths_T = positions_T + 1
        if variants_T is not None:
            lengths_T = torch.maximum(lengths_T, variants_T)
        grown_T = (lengths_T - self._trained).clamp(min=0)
        angles = positions_T.float()[:, None] * self._inverse[grown_T]
        cos, sin = (
            _laid_out(by_row(turn, angles), interleaved=self._interleaved)
            for turn in (torch.cos, torch.sin)
        )
        return cos[:, None], sin[:, None]


class RopeTables:
    """Cosines and sines of every position; LongRoPE has a second variant for long texts."""

    def __init__(self, arch: Arch, *, width: int, context: int, device: torch.device) -> None:
        if not isinstance(arch.position, Rope):
            raise TypeError(f"position.kind {arch.position.kind}: no rotary tables")
        self.interleaved = arch.position.interleaved
        self._context = context
        variants = [frequencies(arch, width=width, is_long=False)]
        if is_length_dependent(arch):
            variants.append(frequencies(arch, width=width, is_long=True))
        tables = [_tables(*one, context, interleaved=self.interleaved) for one in variants]
        self._cos = torch.cat([cos for cos, _ in tables]).to(device)
        self._sin = torch.cat([sin for _, sin in tables]).to(device)

    def at(self, positions_T: Tensor, variants_T: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both tables [T, 1, width] at positions; `variants_T` None means the first variant."""
        rows = positions_T if variants_T is None else positions_T + variants_T * self._context
        return self._cos[rows][:, None], self._sin[rows][:, None]


def relaid(table: Tensor, *, interleaved: bool, wanted: bool) -> Tensor:
    """A table [..., width] of cosines or sines for channels in the other order, where wanted."""
    if interleaved == wanted:
        return table
    if wanted:
        return table[..., : table.shape[-1] // 2].repeat_interleave(2, dim=-1)
    return torch.cat((table[..., ::2],) * 2, dim=-1)


def is_length_dependent(arch: Arch) -> bool:
    """Whether texts beyond a length rotate otherwise."""
    return isinstance(arch.position, Rope) and isinstance(arch.position.scaling, LongRopeScaling)


def short_length(arch: Arch) -> int | None:
    """The longest text of the first variant; None where there is one variant."""
    if isinstance(arch.position, Rope) and isinstance(arch.position.scaling, LongRopeScaling):
        return arch.position.scaling.original_max_position_embeddings
    return None


def grows_from(arch: Arch) -> int | None:
    """The longest prompt whose tokens turn as those of every shorter one; None where all do."""
    if not isinstance(arch.position, Rope) or arch.position.scaling is None:
        return None
    return arch.max_position_embeddings if arch.position.scaling.kind == "dynamic" else None


def context_of(arch: Arch) -> int:
    """Positions that a text may have: those it was trained for, by its factor under dynamic
    scaling, which is for longer texts alone.
    """
    trained = arch.max_position_embeddings
    if grows_from(arch) is None:
        return trained
    assert isinstance(arch.position, Rope)
    assert isinstance(arch.position.scaling, LinearScaling)
    return max(trained, int(trained * arch.position.scaling.factor))


def frequencies(arch: Arch, *, width: int, is_long: bool) -> Frequencies:
    """Frequencies of `width` rotating channels under the model's scaling; see also `GrowingRope`.

    TypeError for a model that has no such rope.
    """
    if not isinstance(arch.position, Rope):
        raise TypeError(f"position.kind {arch.position.kind}: nothing rotates")
    base, scaling = arch.position.base, arch.position.scaling
    if scaling is None:
        return _plain(base, width), 1.0
    if scaling.kind == "dynamic":
        raise TypeError("position.scaling dynamic: frequencies depend on the length of the text")
    if isinstance(scaling, LongRopeScaling):
        return _longrope(scaling, base, width, arch.max_position_embeddings, is_long=is_long)
    return _SCALINGS[scaling.kind](scaling, base, width)


def _tables(
    inverse: Tensor, factor: float, context: int, *, interleaved: bool
) -> tuple[Tensor, Tensor]:
    angles = torch.arange(context).float()[:, None] * inverse
    angles = _laid_out(angles, interleaved=interleaved)
    return angles.cos() * factor, angles.sin() * factor


def _laid_out(x: Tensor, *, interleaved: bool) -> Tensor:
    """[T, width] of one number for each pair of channels."""
    return x.repeat_interleave(2, dim=-1) if interleaved else torch.cat((x, x), dim=-1)


def _plain(base: float, width: int) -> Tensor:
    return 1.0 / base ** (torch.arange(0, width, 2).float() / width)


def _linear(scaling: RopeScaling, base: float, width: int) -> Frequencies:
    assert isinstance(scaling, LinearScaling)
    return _plain(base, width) / scaling.factor, 1.0


def _llama3(scaling: RopeScaling, base: float, width: int) -> Frequencies:
    """Slow channels by 1/factor, fast ones unchanged, a line in turns per context between."""
    assert isinstance(scaling, Llama3Scaling)
    plain, low = _plain(base, width), scaling.low_freq_factor
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    kept = ((turns - low) / (scaling.high_freq_factor - low)).clamp(0, 1)
    return kept * plain + (1 - kept) * plain / scaling.factor, 1.0


def _yarn(scaling: RopeScaling, base: float, width: int) -> Frequencies:
    """Channels that turn often are kept, those that turn rarely divided by factor (2309.00071)."""
    assert isinstance(scaling, YarnScaling)
    original = scaling.original_max_position_embeddings

    def channel(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001  # as in transformers: no division by zero
    divided = ((torch.arange(width // 2).float() - low) / (high - low)).clamp(0, 1)
    plain = _plain(base, width)
    inverse = plain / scaling.factor * divided + plain * (1 - divided)
    return inverse, _yarn_attention_factor(scaling)


def _yarn_attention_factor(scaling: YarnScaling) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * weight * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def _longrope(
    scaling: LongRopeScaling, base: float, width: int, longest: int, *, is_long: bool
) -> Frequencies:
    """A divisor for each channel (2402.13753), one list up to the trained length, one beyond."""
    original, factor = scaling.original_max_position_embeddings, scaling.attention_factor
    divisors = torch.tensor(scaling.long_factor if is_long else scaling.short_factor)
    if factor is None:
        growth = longest / original
        factor = 1.0 if growth <= 1 else math.sqrt(1 + math.log(growth) / math.log(original))
    return _plain(base, width) / divisors, factor


_SCALINGS: Mapping[str, Callable[[RopeScaling, float, int], Frequencies]] = MappingProxyType(
    {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
)
