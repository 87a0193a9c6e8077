"""layer_norm by PyTorch's own operator, which is a fused kernel on cpu, cuda and npu."""

from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.ops.checks import wide


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float, offset: float = 0.0
) -> Tensor:
    """See `reference.layer_norm`."""
    same_dtype = x.dtype is weight.dtype and (bias is None or bias.dtype is x.dtype)
    if offset == 0.0 and same_dtype:
        return functional.layer_norm(x, weight.shape, weight, bias, eps)
    # 1 + weight in bfloat16 would lose the weight's low bits.
    x32 = wide(x)
    gain = (wide(weight) + offset).to(x32.dtype)
    shift = None if bias is None else bias.to(x32.dtype)
    return functional.layer_norm(x32, gain.shape, gain, shift, eps).to(x.dtype)
