"""rms_norm by PyTorch's own operator."""

from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.ops.checks import wide


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
    """See `reference.rms_norm`."""
    if offset == 0.0 and x.dtype is weight.dtype:
        return functional.rms_norm(x, weight.shape, weight, eps)
    # 1 + weight in bfloat16 would lose the weight's low bits.
    gain = wide(weight) + offset
    return functional.rms_norm(wide(x), gain.shape, gain.to(wide(x).dtype), eps).to(x.dtype)
