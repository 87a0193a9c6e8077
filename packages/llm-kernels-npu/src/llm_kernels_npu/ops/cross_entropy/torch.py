"""cross_entropy by PyTorch's own operator."""

from torch import Tensor
from torch.nn import functional

from llm_kernels_npu.ops.checks import wide


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """See `reference.cross_entropy`."""
    return functional.cross_entropy(
        wide(logits), targets, ignore_index=ignore_index, reduction="none"
    )
