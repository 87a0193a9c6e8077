"""The operators' call signatures: what every backend provides and a consumer may rely on.

Shapes and formulas are in each operator's `reference.py`, which is the specification.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from torch import Tensor

AllReduce = Callable[[Tensor], Tensor]
"""Gives a tensor reduced over the ranks to every rank; may write to its argument."""

GeluFormula = Literal["none", "tanh"]
"""Which gelu: exact, or its tanh approximation (torch's names)."""


class RmsNorm(Protocol):
    """`x / rms(x) * (weight + offset)` over the last dimension."""

    def __call__(self, x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
        """Compute it; see the class."""
        ...


class Swiglu(Protocol):
    """`silu(gate) * up` of a last dimension that holds gate, then up."""

    def __call__(self, x: Tensor) -> Tensor:
        """Compute it; see the class."""
        ...


class Rope(Protocol):
    """Rotate the first `cos.shape[-1]` features of `x`; the rest pass through."""

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
        """Compute it; see the class."""
        ...


class CrossEntropy(Protocol):
    """Loss of each row of logits, float32; ignored rows give 0."""

    def __call__(self, logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
        """Compute it; see the class."""
        ...


Reduction = Literal["none", "sum"]
"""A loss a row, or the sum of them."""


class LinearCrossEntropy(Protocol):
    """Loss of each row of `hidden @ weight.T`, or their sum, without holding all logits."""

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "none",
        chunk_rows: int | None = None,
    ) -> Tensor:
        """Compute it; see the class."""
        ...


class AddRmsNorm(Protocol):
    """The norm of `x + residual`, and that sum."""

    def __call__(
        self, x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Compute it; see the class."""
        ...


class LayerNorm(Protocol):
    """`(x - mean) / deviation * (weight + offset) + bias` over the last dimension."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        eps: float,
        offset: float = 0.0,
    ) -> Tensor:
        """Compute it; see the class."""
        ...


class Geglu(Protocol):
    """`gelu(gate) * up` of a last dimension that holds gate, then up."""

    def __call__(self, x: Tensor, *, approximate: GeluFormula = "none") -> Tensor:
        """Compute it; see the class."""
        ...


class VocabParallelCrossEntropy(Protocol):
    """Loss of each row of logits whose vocabulary is spread over ranks."""

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        vocab_start: int,
        all_reduce_max: AllReduce,
        all_reduce_sum: AllReduce,
        ignore_index: int = -100,
    ) -> Tensor:
        """Compute it; see the class."""
        ...


class MatmulAdd(Protocol):
    """`out += x.T @ y` in float32, in place."""

    def __call__(self, out: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Compute it; see the class."""
        ...


class Adamw(Protocol):
    """One step of AdamW, in place; returns the parameter."""

    def __call__(
        self,
        param: Tensor,
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        *,
        step: int,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
    ) -> Tensor:
        """Compute it; see the class."""
        ...


class RingAttentionUpdate(Protocol):
    """Attention over two parts' keys from that over each and its softmax statistics."""

    def __call__(
        self,
        out: Tensor,
        softmax_max: Tensor,
        softmax_sum: Tensor,
        new_out: Tensor,
        new_max: Tensor,
        new_sum: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute it; see the class."""
        ...


class Attention(Protocol):
    """Softmax attention with grouped queries; a causal mask ends at the last key.

    `cu_seqlens` are the boundaries of packed documents: integers of the host.
    """

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Sequence[int] | None = None,
        cu_seqlens_k: Sequence[int] | None = None,
    ) -> Tensor:
        """Compute it; see the class."""
        ...


RouterScore = Literal["softmax", "sigmoid"]
"""How a router's logits become scores."""

GroupScore = Literal["top2", "max"]
"""A group of experts counts for the sum of its two highest scores, or for its highest."""


class RouterTopk(Protocol):
    """Weights float32 and experts int64 of each token, both [N, K], highest score first."""

    def __call__(
        self,
        logits: Tensor,
        *,
        top_k: int,
        score: RouterScore = "softmax",
        bias: Tensor | None = None,
        groups: int = 1,
        top_groups: int = 1,
        group_score: GroupScore = "top2",
        normalize: bool = False,
        scaling: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Compute it; see the class."""
        ...


class Permute(Protocol):
    """Copies of the tokens sorted by expert, and the row in which each copy lies."""

    def __call__(self, tokens: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        """Compute it; see the class."""
        ...


class GroupedMatmul(Protocol):
    """Each group of rows of `x` times a matrix of its own; the sizes sum to the rows."""

    def __call__(self, x: Tensor, weight: Tensor, group_sizes: Tensor | Sequence[int]) -> Tensor:
        """Compute it; see the class."""
        ...


class Unpermute(Protocol):
    """The copies of each token weighted and summed; the inverse of Permute for weights of 1 / K."""

    def __call__(self, copies: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """Compute it; see the class."""
        ...


class CausalConv1d(Protocol):
    """A depthwise convolution over tokens, and the tokens the next call starts from."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        initial_state: Tensor | None = None,
        *,
        activation: Literal["silu"] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute it; see the class."""
        ...


class GatedDeltaRule(Protocol):
    """Outputs of the gated delta rule, and its state after the last token."""

    def __call__(
        self,
        q_BTGK: Tensor,
        k_BTGK: Tensor,
        v_BTHV: Tensor,
        log_decay_BTH: Tensor,
        beta_BTH: Tensor,
        initial_state: Tensor | None = None,
        *,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute it; see the class."""
        ...


class Mamba2Scan(Protocol):
    """Outputs of Mamba-2's state space, and its state after the last token."""

    def __call__(
        self,
        x_BTHP: Tensor,
        dt_BTH: Tensor,
        a_H: Tensor,
        b_BTGN: Tensor,
        c_BTGN: Tensor,
        d_H: Tensor | None = None,
        initial_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute it; see the class."""
        ...


class DsaIndexer(Protocol):
    """The keys [B, T, top_k] int32 of highest score, in ascending order, -1 behind the last."""

    def __call__(
        self, q: Tensor, k: Tensor, weights: Tensor, *, top_k: int, causal: bool = True
    ) -> Tensor:
        """Compute it; see the class."""
        ...


class SparseAttention(Protocol):
    """Attention of all heads over the chosen ones of latents that are key and value."""

    def __call__(
        self, q: Tensor, kv: Tensor, keys: Tensor, *, value_dim: int, scale: float | None = None
    ) -> Tensor:
        """Compute it; see the class."""
        ...
