"""grouped_matmul by `torch_npu.npu_grouped_matmul`, its gradients too."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_kernels_npu.ops.grouped_matmul.products import Products, ends_of, grouped

_ROWS_ARE_GROUPED = 0
_SUM_IS_GROUPED = 2
_ONE_OUTPUT = 3


def grouped_matmul(x: Tensor, weight: Tensor, group_sizes: Tensor | Sequence[int]) -> Tensor:
    """See `reference.grouped_matmul`. Sizes on the device are never waited for."""
    ends = ends_of(group_sizes, device=x.device, dtype=torch.int64)
    return grouped(_FUSED, x, weight, ends)


def _rows(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return _fused(x, weight, ends, group_type=_ROWS_ARE_GROUPED)


def _outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return _fused(left.t(), right, ends, group_type=_SUM_IS_GROUPED)


def _fused(x: Tensor, weight: Tensor, ends: Tensor, *, group_type: int) -> Tensor:
    # Its group_list holds ends unless told otherwise: sizes would not do for a single group.
    fused = torch.ops.npu.npu_grouped_matmul.default
    return fused([x], [weight], group_list=ends, split_item=_ONE_OUTPUT, group_type=group_type)[0]


_FUSED = Products(_rows, _outer)
