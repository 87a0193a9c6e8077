"""grouped_matmul by PyTorch: its own grouped product where it has one, else group by group."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_kernels_npu.ops.grouped_matmul.products import Products, ends_of, grouped
from llm_kernels_npu.ops.grouped_matmul.reference import host_sizes

# PyTorch's grouped product reads rows in blocks of this many bytes.
_ALIGNMENT_BYTES = 16


def grouped_matmul(x: Tensor, weight: Tensor, group_sizes: Tensor | Sequence[int]) -> Tensor:
    """See `reference.grouped_matmul`; the products are made in x's dtype."""
    if _is_grouped_by_torch(x, weight):
        ends = ends_of(group_sizes, device=x.device, dtype=torch.int32)
        return grouped(_TORCH, _aligned(x), _aligned(weight), ends)
    parts = x.split(host_sizes(group_sizes))
    return torch.cat([part @ matrix for part, matrix in zip(parts, weight.unbind(), strict=True)])


def _is_grouped_by_torch(x: Tensor, weight: Tensor) -> bool:
    row_bytes = [size * x.element_size() for size in weight.shape[1:]]
    return (
        x.dtype is torch.bfloat16
        and x.device.type in ("cpu", "cuda")
        and not any(count % _ALIGNMENT_BYTES for count in row_bytes)
    )


def _aligned(x: Tensor) -> Tensor:
    """`x`, copied where PyTorch's grouped product refuses how its rows or columns lie."""
    strides, block = x.stride(), _ALIGNMENT_BYTES // x.element_size()
    is_read = 1 in strides[-2:] and all(step == 1 or step % block == 0 for step in strides)
    return x if is_read and x.data_ptr() % _ALIGNMENT_BYTES == 0 else x.contiguous()


def _rows(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return torch._grouped_mm(x, weight, offs=ends)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]


def _outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return torch._grouped_mm(left.t(), right, offs=ends)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]


_TORCH = Products(_rows, _outer)
