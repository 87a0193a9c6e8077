"""The specification of matmul_add."""

from torch import Tensor

from llm_kernels_npu.ops.checks import wide


def matmul_add(out: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`out += x.T @ y`, written to out and returned; it has no gradient.

    out [M, N] float32 (float64 for float64 x), x [K, M], y [K, N]. The product is made and added
    in float32: over many micro-batches a 16-bit sum would lose the later ones.
    For a linear layer `y = x @ weight.T`: `matmul_add(weight_grad, y_grad, x)`.
    """
    return out.add_(wide(x).T @ wide(y))
