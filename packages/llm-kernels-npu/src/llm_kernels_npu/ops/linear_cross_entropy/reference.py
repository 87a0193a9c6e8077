"""The specification of linear_cross_entropy."""

from torch import Tensor

from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.ops.cross_entropy.reference import cross_entropy
from llm_kernels_npu.signatures import Reduction


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "none",
    chunk_rows: int | None = None,
) -> Tensor:
    """`cross_entropy(hidden @ weight.T, targets)`, or its sum over the rows.

    hidden [N, H], weight [V, H], targets [N] int64 → [N] or, for `reduction="sum"`, [], float32
    (float64 for float64). All in float32, the product too. `chunk_rows`: rows whose logits a faster
    backend has at a time, None = as many as it finds best; here they all exist.
    """
    del chunk_rows
    logits = wide(hidden) @ wide(weight).T
    losses = cross_entropy(logits, targets, ignore_index=ignore_index)
    return losses.sum() if reduction == "sum" else losses
