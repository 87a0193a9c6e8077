"""swiglu in Triton."""

from torch import Tensor

from llm_kernels_npu.ops.gated import gated


def swiglu(x: Tensor) -> Tensor:
    """See `reference.swiglu`."""
    return gated(x, activation="silu")
