"""A grouped product and its gradients, made of the two products that fused operators give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Products:
    """Both take the row after each group's last, `ends` [E], on the device of the rest."""

    rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    """[M, K], [E, K, N] → [M, N]: every row by the matrix of its group."""
    outer: Callable[[Tensor, Tensor, Tensor], Tensor]
    """[M, K], [M, N] → [E, K, N]: for every group, its left rows transposed by its right ones."""


def grouped(products: Products, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The grouped product by `products`; no rows at all are answered without them."""
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _Grouped.apply)  # pyright: ignore[reportUnknownMemberType]
    return run(products, x, weight, ends)


def ends_of(
    group_sizes: Tensor | Sequence[int], *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The row after each group's last [E]; sizes that lie on the device stay there."""
    return torch.as_tensor(group_sizes, device=device).cumsum(0, dtype=dtype)


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Products, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.products = products
        ctx.save_for_backward(x, weight, ends)
        if not x.shape[0]:
            return x.new_zeros(0, weight.shape[2])
        return products.rows(x, weight, ends)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: Any, grad: Tensor
    ) -> tuple[None, Tensor | None, Tensor | None, None]:
        x, weight, ends = cast(tuple[Tensor, Tensor, Tensor], ctx.saved_tensors)
        _, needs_x, needs_weight, _ = ctx.needs_input_grad
        if not x.shape[0]:
            return None, torch.zeros_like(x), torch.zeros_like(weight), None
        products, grad = cast(Products, ctx.products), grad.contiguous()
        grad_x = products.rows(grad, weight.transpose(1, 2), ends) if needs_x else None
        grad_weight = products.outer(x, grad, ends) if needs_weight else None
        return None, grad_x, grad_weight, None
