"""geglu by PyTorch's gelu, without a float32 copy."""

from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.signatures import GeluFormula


def geglu(x: Tensor, *, approximate: GeluFormula = "none") -> Tensor:
    """See `reference.geglu`; in 16 bits gelu is rounded once more."""
    gate, up = x.chunk(2, dim=-1)
    return functional.gelu(gate, approximate=approximate) * up
