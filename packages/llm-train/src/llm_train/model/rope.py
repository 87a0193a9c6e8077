"""Rotary positions of an architecture: frequencies, scaling, and the rotation itself.

Formulas: transformers' modeling_rope_utils.py, which follows the papers named below.
"""

import math
from typing import Any, cast

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from llm_train.arch import LinearScaling, Llama3Scaling, LongRopeScaling, Rope, YarnScaling
from llm_train.kernels import Kernels


class Rotary(RotaryEmbedding):
    """What GPTModel asks for rotary positions: [T, 1, 1, rotary_dim], cosines then sines.

    `dim` is the number of elements that rotate.
    """

    def __init__(self, rope: Rope, *, dim: int, max_positions: int) -> None:
        torch.nn.Module.__init__(self)
        self.rope, self.dim, self.max_positions = rope, dim, max_positions

    @property
    def is_by_length(self) -> bool:
        """How fast tokens turn depends on the length of their sequence."""
        scaling = self.rope.scaling
        return isinstance(scaling, LongRopeScaling) or (
            isinstance(scaling, LinearScaling) and scaling.kind == "dynamic"
        )

    def of_tokens(self, position_ids: torch.Tensor, sequence_tokens: torch.Tensor) -> torch.Tensor:
        """[T, B, 1, rotary_dim] of tokens [B, T] at places of sequences of so many tokens."""
        frequencies = inverse_frequencies(
            self.rope, dim=self.dim, tokens=sequence_tokens, max_positions=self.max_positions
        )
        return self._table(position_ids.float()[..., None] * frequencies).transpose(0, 1)[
            :, :, None
        ]

    def forward(  # pyright: ignore[reportIncompatibleVariableOverride]  # not cached
        self, max_seq_len: int, offset: int = 0, packed_seq: bool = False, cp_group: object = None
    ) -> torch.Tensor:
        frequencies = inverse_frequencies(
            self.rope, dim=self.dim, tokens=max_seq_len, max_positions=self.max_positions
        )
        positions = torch.arange(max_seq_len) + offset
        table = self._table(torch.outer(positions.float(), frequencies))
        return table[:, None, None, :].to(torch.cuda.current_device())

    def _table(self, angles: torch.Tensor) -> torch.Tensor:
        """[..., rotary_dim / 2] → [..., rotary_dim]."""
        factor = attention_factor(self.rope, max_positions=self.max_positions)
        return torch.cat([angles.cos(), angles.sin()], dim=-1) * factor


def at_positions(table: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """[T, B, 1, rotary_dim] of `table` [positions, 1, 1, rotary_dim] and `position_ids` [B, T]."""
    return table.squeeze(1)[position_ids.T]


def rotate(
    x: torch.Tensor,
    table: torch.Tensor,
    *,
    is_interleaved: bool,
    kernels: Kernels | None = None,
) -> torch.Tensor:
    """Turn the first elements of every head of x [T, B, H, D] by `table` [T, 1|B, 1, rotary_dim].

    A pair is (i, i + rotary_dim / 2), or (2i, 2i + 1) when interleaved. In fp32.
    """
    cos, sin = table.chunk(2, dim=-1)
    if kernels is not None:
        cos, sin = (_for_each_feature(one, is_interleaved=is_interleaved) for one in (cos, sin))
        return kernels.rope(x, cos, sin, interleaved=is_interleaved)
    turning, rest = x[..., : table.shape[-1]].float(), x[..., table.shape[-1] :]
    turned = cast("torch.Tensor", _Turn.apply(turning, cos, sin, is_interleaved)).type_as(x)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _for_each_feature(of_pairs: torch.Tensor, *, is_interleaved: bool) -> torch.Tensor:
    """[..., R / 2] → [..., R]: an entry for both features of a pair."""
    if is_interleaved:
        return of_pairs.repeat_interleave(2, dim=-1)
    return torch.cat([of_pairs, of_pairs], dim=-1)


class _Turn(torch.autograd.Function):
    """(a, b) → (a·cos - b·sin, b·cos + a·sin), written where it is to lie, without temporaries."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, is_interleaved: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.is_interleaved = is_interleaved
        return _turned(x, cos, sin, is_interleaved=is_interleaved)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        # The transposed rotation turns back.
        back = _turned(grad_outputs[0], cos, -sin, is_interleaved=ctx.is_interleaved)
        return back, None, None, None


def _turned(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, is_interleaved: bool
) -> torch.Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    (a, b), (turned_a, turned_b) = (
        (y[..., 0::2], y[..., 1::2]) if is_interleaved else y.chunk(2, dim=-1) for y in (x, out)
    )
    torch.mul(a, cos, out=turned_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=turned_b).addcmul_(a, sin)
    return out


def rotary_dim(rope: Rope, head_dim: int) -> int:
    """Elements of a head that rotate."""
    return int(head_dim * rope.fraction)


def inverse_frequencies(
    rope: Rope, *, dim: int, tokens: int | torch.Tensor, max_positions: int
) -> torch.Tensor:
    """[dim / 2] fp32: radians a position, one a rotated pair, for a sequence of `tokens`.

    Of a tensor of them [...] one for each, [..., dim / 2], where the scaling asks for their number.
    """
    device = tokens.device if isinstance(tokens, torch.Tensor) else None
    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim
    frequencies = 1.0 / (rope.base**exponents)
    scaling = rope.scaling
    if scaling is None:
        return frequencies
    if isinstance(scaling, Llama3Scaling):
        return _llama3(frequencies, scaling)
    if isinstance(scaling, YarnScaling):
        return _yarn(frequencies, rope.base, scaling)
    if isinstance(scaling, LongRopeScaling):
        is_long = torch.as_tensor(tokens > scaling.original_max_position_embeddings)
        long, short = (
            torch.tensor(one, device=device) for one in (scaling.long_factor, scaling.short_factor)
        )
        return frequencies / torch.where(is_long[..., None], long, short)
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    return _dynamic(rope.base, exponents, scaling.factor, dim, tokens, max_positions)


def attention_factor(rope: Rope, *, max_positions: int) -> float:
    """What cosines and sines are multiplied by, so that attention stays as sharp."""
    scaling = rope.scaling
    if isinstance(scaling, YarnScaling):
        if scaling.mscale and scaling.mscale_all_dim:
            return _mscale(scaling.factor, scaling.mscale) / _mscale(
                scaling.factor, scaling.mscale_all_dim
            )
        return _mscale(scaling.factor, 1.0)
    if isinstance(scaling, LongRopeScaling):
        if scaling.attention_factor is not None:
            return scaling.attention_factor
        ratio = max_positions / scaling.original_max_position_embeddings
        context = scaling.original_max_position_embeddings
        return 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(context))
    return 1.0


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between interpolated."""
    context = scaling.original_max_position_embeddings
    waves = 2 * math.pi / frequencies
    keep = (context / waves - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    keep = keep.clamp(0.0, 1.0)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def _yarn(frequencies: torch.Tensor, base: float, scaling: YarnScaling) -> torch.Tensor:
    """Between the pairs that turn `beta_fast` and `beta_slow` times (arXiv 2309.00071, §3.2)."""
    dim, context = 2 * len(frequencies), scaling.original_max_position_embeddings

    def pair_of(turns: float) -> float:
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a step, not a division by zero
    stretch = ((torch.arange(dim // 2).float() - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies / scaling.factor * stretch + frequencies * (1 - stretch)


def _dynamic(
    base: float,
    exponents: torch.Tensor,
    factor: float,
    dim: int,
    tokens: int | torch.Tensor,
    max_positions: int,
) -> torch.Tensor:
    """The base grows with the sequence once it is longer than the model's positions."""
    longest = torch.as_tensor(tokens).clamp(min=max_positions).float()
    growth = factor * longest / max_positions - (factor - 1)
    return 1.0 / ((base * growth ** (dim / (dim - 2)))[..., None] ** exponents)


__all__ = [
    "Rotary",
    "at_positions",
    "attention_factor",
    "inverse_frequencies",
    "rotary_dim",
    "rotate",
]
