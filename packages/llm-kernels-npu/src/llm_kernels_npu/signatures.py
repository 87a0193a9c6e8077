"""The operators' call signatures: what every backend provides and a consumer may rely on.

Shapes and formulas are in each operator's `reference.py`, which is the specification.
"""

from typing import Literal, Protocol

from torch import Tensor

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


class LinearCrossEntropy(Protocol):
    """Loss of each row of `hidden @ weight.T`, without holding all logits."""

    def __call__(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100
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


class Attention(Protocol):
    """Softmax attention with grouped queries; a causal mask ends at the last key."""

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
    ) -> Tensor:
        """Compute it; see the class."""
        ...
