"""A frozen linear and its adapter as one forward and one backward, their exchanges overlapped.

T tokens, I inputs, O outputs, R the rank; t, i and o are a rank's part of them. Every collective is
under way while a product is made that does not need it:

    column, forward    x is gathered while x Aᵀ is made, x Aᵀ while x Wᵀ is
    column, backward   g B is summed while g W is made, g W while the gradients of A and B are
    row, forward       x Aᵀ is summed while x Wᵀ is made, x Wᵀ while the product with Bᵀ is
    row, backward      g is gathered while g B and the gradient of B are made

Nothing is exchanged or saved that plain adapters do not (llm_train.model.lora.adapter). All tensors
are flat, [T, …], and all of it is outside autograd.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from llm_train.model.lora.adapter import Adapter, Cut
from llm_train.model.lora.exchange import Exchange
from llm_train.model.lora.orders import WHOLE, Order, Orders, Sizes, cheapest


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """W [O, I] and bias [O] that stay, A [R, I] and B [O, R] that learn: this rank's parts."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """Those of x, A and B; `x` is None where nobody asked for it."""

    x: torch.Tensor | None
    a: torch.Tensor
    b: torch.Tensor


class Products(Protocol):
    """One way for a linear to lie on ranks. `low` is x Aᵀ where forward made it."""

    def forward(
        self, x: torch.Tensor, weights: Weights
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output, in memory of its own, and `low`."""
        ...

    def backward(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        low: torch.Tensor | None,
        weights: Weights,
        *,
        needs_x: bool = True,
    ) -> Gradients:
        """Of the output's gradient."""
        ...


class ColumnProducts:
    """Outputs are cut: x [t, I] or [T, I] → [T, o]."""

    def __init__(self, exchange: Exchange, scaling: float) -> None:
        self._exchange, self._scaling = exchange, scaling

    def forward(
        self, x: torch.Tensor, weights: Weights
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        coming = self._exchange.gather(x)
        if self._orders(x, weights).output is Order.WHOLE:
            table = _whole(weights, self._scaling)
            return _product(coming.wait(), weights, table), None
        low = self._exchange.gather(x @ weights.a.t())
        out = F.linear(coming.wait(), weights.weight, weights.bias)
        return out.addmm_(low.wait(), weights.b.t(), alpha=self._scaling), low.result

    def backward(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        low: torch.Tensor | None,
        weights: Weights,
        *,
        needs_x: bool = True,
    ) -> Gradients:
        exchange, orders = self._exchange, self._orders(x, weights)
        if orders.weights is Order.WHOLE:
            return _backward_whole(grad, x, weights, self._scaling, needs_x=needs_x)
        coming_low = exchange.sum((grad @ weights.b).mul_(self._scaling))
        coming = None
        if needs_x:
            coming = exchange.sum(_at_input(grad, weights, orders, self._scaling))
        low = exchange.gather(x @ weights.a.t()).wait() if low is None else low
        grad_b = (grad.t() @ low).mul_(self._scaling)
        grad_low = coming_low.wait()
        grad_a = grad_low.t() @ x
        grad_x = None if coming is None else coming.wait()
        if grad_x is not None and orders.output is Order.FACTORS:
            grad_x.addmm_(grad_low, weights.a)
        return Gradients(x=grad_x, a=grad_a, b=grad_b)

    def _orders(self, x: torch.Tensor, weights: Weights) -> Orders:
        tokens = x.shape[0]
        whole = tokens * (self._exchange.ranks if self._exchange.is_sliced else 1)
        return _cheapest(weights, self._exchange, tokens_in=tokens, tokens_out=whole)


class RowProducts:
    """Inputs are cut: x [T, i] → [t, O] or [T, O]. No bias: it is added to the sum over ranks."""

    def __init__(self, exchange: Exchange, scaling: float) -> None:
        self._exchange, self._scaling = exchange, scaling

    def forward(
        self, x: torch.Tensor, weights: Weights
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        exchange = self._exchange
        if self._orders(x, weights).output is Order.WHOLE:
            return exchange.sum(_product(x, weights, _whole(weights, self._scaling))).wait(), None
        coming = exchange.sum(x @ weights.a.t())
        out = exchange.sum(F.linear(x, weights.weight))
        low = coming.wait()
        if exchange.ranks == 1:
            return out.result.addmm_(low, weights.b.t(), alpha=self._scaling), low
        added = (low @ weights.b.t()).mul_(self._scaling)
        return out.wait().add_(added), low

    def backward(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        low: torch.Tensor | None,
        weights: Weights,
        *,
        needs_x: bool = True,
    ) -> Gradients:
        exchange, orders = self._exchange, self._orders(x, weights)
        if orders.weights is Order.WHOLE:
            return _backward_whole(grad, x, weights, self._scaling, needs_x=needs_x)
        coming = exchange.gather(grad) if needs_x else None
        coming_low = exchange.gather((grad @ weights.b).mul_(self._scaling))
        low = exchange.sum(x @ weights.a.t()).wait() if low is None else low
        grad_b = (grad.t() @ low).mul_(self._scaling)
        grad_x = None
        if coming is not None:
            grad_x = _at_input(coming.wait(), weights, orders, self._scaling)
        grad_low = coming_low.wait()
        if grad_x is not None and orders.output is Order.FACTORS:
            grad_x.addmm_(grad_low, weights.a)
        return Gradients(x=grad_x, a=grad_low.t() @ x, b=grad_b)

    def _orders(self, x: torch.Tensor, weights: Weights) -> Orders:
        tokens = x.shape[0]
        part = tokens // (self._exchange.ranks if self._exchange.is_sliced else 1)
        return _cheapest(weights, self._exchange, tokens_in=tokens, tokens_out=part)


def products_of(adapter: Adapter) -> Products:
    """Those of the linear that an adapter is for."""
    scaling = adapter.form.scaling
    assert not isinstance(scaling, tuple), "attach_adapters refuses these"
    made = {Cut.OUTPUTS: ColumnProducts, Cut.INPUTS: RowProducts}[adapter.place.cut]
    return made(Exchange(adapter.place), scaling)


def _cheapest(weights: Weights, exchange: Exchange, *, tokens_in: int, tokens_out: int) -> Orders:
    (rank, inputs), outputs = weights.a.shape, weights.b.shape[0]
    sizes = Sizes(
        tokens_in=tokens_in, tokens_out=tokens_out, inputs=inputs, outputs=outputs, rank=rank
    )
    return cheapest(sizes, is_joined=_is_joined(weights), is_alone=exchange.ranks == 1)


def _is_joined(weights: Weights) -> bool:
    """W + s · B A is as good as both: in two bytes it would lose most of what adapters change."""
    return weights.weight.dtype is torch.float32


def _whole(weights: Weights, scaling: float) -> torch.Tensor:
    """[O, I]: W + s · B A, or s · B A alone."""
    if _is_joined(weights):
        return torch.addmm(weights.weight, weights.b, weights.a, alpha=scaling)
    return (weights.b @ weights.a).mul_(scaling)


def _product(x: torch.Tensor, weights: Weights, table: torch.Tensor) -> torch.Tensor:
    """The output, with a table of `_whole`."""
    if _is_joined(weights):
        return F.linear(x, table, weights.bias)
    return F.linear(x, weights.weight, weights.bias).addmm_(x, table.t())


def _at_input(grad: torch.Tensor, weights: Weights, orders: Orders, scaling: float) -> torch.Tensor:
    """The gradient at x; by factors without the adapter's part."""
    if orders.output is Order.FACTORS:
        return grad @ weights.weight
    table = _whole(weights, scaling)
    return grad @ table if _is_joined(weights) else (grad @ weights.weight).addmm_(grad, table)


def _backward_whole(
    grad: torch.Tensor, x: torch.Tensor, weights: Weights, scaling: float, *, needs_x: bool
) -> Gradients:
    """By the gradient of W [O, I], which no one else wants; on one rank alone."""
    grad_w = (grad.t() @ x).mul_(scaling)
    grad_x = _at_input(grad, weights, WHOLE, scaling) if needs_x else None
    return Gradients(x=grad_x, a=weights.b.t() @ grad_w, b=grad_w @ weights.a.t())
