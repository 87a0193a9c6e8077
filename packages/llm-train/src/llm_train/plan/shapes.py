"""What one rank works on at once."""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """One micro-batch on one rank. `width` is the bytes of an activation element.

    `has_kernels`: the device has one kernel for a norm, and one for attention whose values are of
    another size than its keys (CUDA). `cp`: ranks that share a sequence. `exchange`: attention sees
    keys and values that came from other ranks, of so many times a rank's tokens; None where it
    keeps the rank's own. `has_fused_mlp`: dense feed-forwards keep neither activation nor product.
    """

    tokens: int
    seq_length: int
    tp: int
    is_sequence_parallel: bool
    width: int
    has_kernels: bool
    cp: int = 1
    exchange: int | None = None
    has_fused_mlp: bool = False

    @property
    def tokens_outside(self) -> int:
        """Tokens of a rank outside attention and feed-forward, where sequence parallel cuts."""
        return self.tokens // self.tp if self.is_sequence_parallel else self.tokens
