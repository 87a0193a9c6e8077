"""The operators llm-train asks of a provider of kernels, by shape."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class RmsNorm(Protocol):
    """`x / rms(x) * (weight + offset)` over the last axis of x."""

    def __call__(
        self, x: "torch.Tensor", weight: "torch.Tensor", *, eps: float, offset: float = 0.0
    ) -> "torch.Tensor":
        """In x's shape and dtype."""
        ...


class LayerNorm(Protocol):
    """`(x - mean) / deviation * (weight + offset) + bias` over the last axis of x."""

    def __call__(
        self,
        x: "torch.Tensor",
        weight: "torch.Tensor",
        bias: "torch.Tensor | None" = None,
        *,
        eps: float,
        offset: float = 0.0,
    ) -> "torch.Tensor":
        """In x's shape and dtype."""
        ...


class Swiglu(Protocol):
    """`silu(gate) * up` of a last axis that holds gate, then up."""

    def __call__(self, x: "torch.Tensor") -> "torch.Tensor":
        """[..., 2 · F] → [..., F]; x is not empty."""
        ...


class RotaryEmbedding(Protocol):
    """Turns the first R features of every head."""

    def __call__(
        self,
        x: "torch.Tensor",
        cos: "torch.Tensor",
        sin: "torch.Tensor",
        *,
        interleaved: bool = False,
    ) -> "torch.Tensor":
        """X [T, B, H, D], tables [T, 1 or B, 1, R], one entry a feature → [T, B, H, D]."""
        ...


class SoftmaxAttention(Protocol):
    """Attention of grouped queries."""

    def __call__(
        self,
        q: "torch.Tensor",
        k: "torch.Tensor",
        v: "torch.Tensor",
        *,
        causal: bool,
        scale: float | None = None,
        window: int | None = None,
        sinks: "torch.Tensor | None" = None,
        cu_seqlens: Sequence[int] | None = None,
    ) -> "torch.Tensor":
        """Q [B, T, H, D], k [B, T, G, D], v [B, T, G, E] → [B, T, H, E].

        `window` counts the tokens a query sees, itself included. `cu_seqlens` are the bounds of
        the documents in all rows, one after another, from 0 to B · T.
        """
        ...


class CrossEntropy(Protocol):
    """The loss of each row of logits."""

    def __call__(
        self, logits: "torch.Tensor", targets: "torch.Tensor", *, ignore_index: int = -100
    ) -> "torch.Tensor":
        """[N, V] and [N] → [N] in fp32."""
        ...


AllReduce = Callable[["torch.Tensor"], "torch.Tensor"]
"""A reduction over ranks, which may write to its argument."""


class VocabParallelCrossEntropy(Protocol):
    """The loss of each row of logits that lie cut over ranks."""

    def __call__(
        self,
        logits: "torch.Tensor",
        targets: "torch.Tensor",
        *,
        vocab_start: int,
        all_reduce_max: AllReduce,
        all_reduce_sum: AllReduce,
        ignore_index: int = -100,
    ) -> "torch.Tensor":
        """[N, V / ranks] from word `vocab_start` on, and [N] → [N] in fp32 on every rank."""
        ...


class LinearCrossEntropy(Protocol):
    """The loss of each row of logits that exist some rows at a time."""

    def __call__(
        self,
        hidden: "torch.Tensor",
        weight: "torch.Tensor",
        targets: "torch.Tensor",
        *,
        ignore_index: int = -100,
        chunk_rows: int | None = None,
    ) -> "torch.Tensor":
        """[N, H], [V, H] and [N] → [N] in fp32; `chunk_rows` at a time, None = as it finds best."""
        ...


class GroupedMatmul(Protocol):
    """Each group of rows times a matrix of its own."""

    def __call__(
        self,
        x: "torch.Tensor",
        weight: "torch.Tensor",
        group_sizes: "torch.Tensor | Sequence[int]",
    ) -> "torch.Tensor":
        """[M, K] · [E, K, N] → [M, N]; sizes [E] sum to M, which may be 0."""
        ...


class Permute(Protocol):
    """A copy of every token for each of its experts, sorted by expert."""

    def __call__(
        self, tokens: "torch.Tensor", experts: "torch.Tensor"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """[N, H] and [N, K] → copies [N · K, H], and the row of each [N · K] int32."""
        ...


class Unpermute(Protocol):
    """The weighted sum of each token's copies."""

    def __call__(
        self, copies: "torch.Tensor", rows: "torch.Tensor", weights: "torch.Tensor"
    ) -> "torch.Tensor":
        """Copies and rows as Permute gives them, weights [N, K] → [N, H]."""
        ...


class Kernels(Protocol):
    """The fused operators that layers are built of; `str` of it says what computes each."""

    @property
    def rms_norm(self) -> RmsNorm:
        """Norms of layers, heads and latents."""
        ...

    @property
    def layer_norm(self) -> LayerNorm:
        """Norms of models that have layer norms."""
        ...

    @property
    def swiglu(self) -> Swiglu:
        """Feed-forwards and experts with a SiLU gate."""
        ...

    @property
    def rope(self) -> RotaryEmbedding:
        """Rotary positions."""
        ...

    @property
    def attention(self) -> SoftmaxAttention:
        """Causal attention."""
        ...

    @property
    def cross_entropy(self) -> CrossEntropy:
        """The loss, where one rank holds all logits."""
        ...

    @property
    def vocab_parallel_cross_entropy(self) -> VocabParallelCrossEntropy:
        """The loss over tensor-parallel ranks."""
        ...

    @property
    def linear_cross_entropy(self) -> LinearCrossEntropy:
        """The loss in parts, where one rank holds the whole output layer."""
        ...

    @property
    def grouped_matmul(self) -> GroupedMatmul:
        """Linears of all experts of a rank."""
        ...

    @property
    def permute(self) -> Permute:
        """Tokens on their way to experts."""
        ...

    @property
    def unpermute(self) -> Unpermute:
        """Tokens on their way back."""
        ...


class OpenKernels(Protocol):
    """What the entry points of `llm_train.kernels` name."""

    def __call__(self, *, device: str, features: Mapping[str, Collection[str]]) -> Kernels:
        """The operators for `cpu`, `cuda` or `npu`.

        `features` names by operator what the model will ask for beyond the ordinary: `window`,
        `sinks` and `documents` of attention.
        """
        ...
