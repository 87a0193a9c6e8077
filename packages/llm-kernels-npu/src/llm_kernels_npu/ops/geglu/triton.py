"""geglu in Triton."""

from torch import Tensor

from llm_kernels_npu.ops.gated import gated
from llm_kernels_npu.signatures import GeluFormula


def geglu(x: Tensor, *, approximate: GeluFormula = "none") -> Tensor:
    """See `reference.geglu`."""
    return gated(x, activation="gelu" if approximate == "none" else "gelu_tanh")
