"""Rotary frequencies of an architecture (pure)."""

import math

import torch

from llm_train.arch import LinearScaling, Llama3Scaling, Rope
from llm_train.model.fields import UnsupportedArchError


def rotary_dim(rope: Rope, head_dim: int) -> int:
    """Elements of a head that rotate."""
    return int(head_dim * rope.fraction)


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """[rotary_dim / 2] fp32: radians a position, one a rotated pair.

    Llama 3 scaling: `_compute_llama3_parameters` in transformers' modeling_rope_utils.py.
    """
    dim = rotary_dim(rope, head_dim)
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    frequencies = 1.0 / (rope.base**exponents)
    scaling = rope.scaling
    if scaling is None:
        return frequencies
    if isinstance(scaling, LinearScaling) and scaling.kind == "linear":
        return frequencies / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _llama3(frequencies, scaling)
    raise UnsupportedArchError(
        f"position.scaling.kind={scaling.kind!r} (can build: null, 'linear', 'llama3')"
    )


def _llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between interpolated."""
    context = scaling.original_max_position_embeddings
    waves = 2 * math.pi / frequencies
    keep = (context / waves - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    keep = keep.clamp(0.0, 1.0)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies
