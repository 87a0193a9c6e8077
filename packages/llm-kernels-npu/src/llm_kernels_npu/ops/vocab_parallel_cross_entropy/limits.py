"""What each backend of vocab_parallel_cross_entropy takes: what cross_entropy takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.cross_entropy.limits import LIMITS as WHOLE
from llm_kernels_npu.signatures import AllReduce


def _any_device(
    logits: Tensor,
    targets: Tensor,
    *,
    vocab_start: int,
    all_reduce_max: AllReduce,
    all_reduce_sum: AllReduce,
    ignore_index: int = -100,
) -> str | None:
    del all_reduce_max, all_reduce_sum, ignore_index
    if vocab_start < 0:
        return f"vocab_start is {vocab_start}, want 0 or more"
    reason = WHOLE["torch"](logits, targets)
    if reason is None and logits.shape[1] == 0:
        reason = f"logits of shape {tuple(logits.shape)} hold no word"
    return reason


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device}
)
