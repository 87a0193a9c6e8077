"""In which order an adapter's products are taken, by counted operations.

A linear with an adapter is x Wᵀ + s · x Aᵀ Bᵀ. `FACTORS` takes x Aᵀ first; `WHOLE` makes B A, which
pays where there are many tokens and a large rank, or few inputs and outputs. The gradients of A and
B have the same choice: by gᵀ x, or by products with the rank's columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Order(StrEnum):
    """Which product is made first."""

    FACTORS = "factors"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of one rank's products: A [rank, inputs] meets `tokens_in`, B [outputs, rank] `tokens_out`.

    They differ under sequence parallel, where one of both has a slice of the tokens that the
    linear itself takes.
    """

    tokens_in: int
    tokens_out: int
    inputs: int
    outputs: int
    rank: int

    @property
    def tokens(self) -> int:
        """Those of the linear itself."""
        return max(self.tokens_in, self.tokens_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """`output` is of what is added to the output, and of its gradient at the input; `weights` is of
    the gradients of A and B.
    """

    output: Order
    weights: Order


PLAIN = Orders(output=Order.FACTORS, weights=Order.FACTORS)
WHOLE_OUTPUT = Orders(output=Order.WHOLE, weights=Order.FACTORS)
# Where gᵀ x pays, B A does.
WHOLE = Orders(output=Order.WHOLE, weights=Order.WHOLE)


def cheapest(sizes: Sizes, *, is_joined: bool, is_alone: bool) -> Orders:
    """The orders of fewest operations in forward and backward together; PLAIN among equals.

    `is_joined`: B A may be added to the weight, so that one product has both. `is_alone`: no other
    rank has a part of this linear; else gradients by gᵀ x would have to be exchanged, with as many
    columns as the linear, and are not taken.
    """
    choices = (PLAIN, WHOLE_OUTPUT, *((WHOLE,) if is_alone else ()))
    return min(choices, key=lambda one: operations(sizes, one, is_joined=is_joined))


def operations(sizes: Sizes, orders: Orders, *, is_joined: bool) -> int:
    """What the adapter costs beyond the linear, forward and backward.

    A product of [M, K] and [K, N] has 2 M K N operations, a sum of two [M, N] has M N.
    """
    by_a = 2 * sizes.tokens_in * sizes.rank * sizes.inputs
    by_b = 2 * sizes.tokens_out * sizes.rank * sizes.outputs
    if orders == PLAIN:
        # x Aᵀ Bᵀ, and g B A; gᵀ with x Aᵀ, and (g B)ᵀ with x.
        return (by_a + by_b) + (by_b + by_a) + (by_b + by_a)
    by_both = 2 * sizes.rank * sizes.outputs * sizes.inputs
    entries = sizes.outputs * sizes.inputs
    through = 2 * sizes.tokens * entries
    # B A and its product with x, and again with g.
    twice = 2 * (by_both + (entries if is_joined else through))
    if orders == WHOLE_OUTPUT:
        # x Aᵀ, g B, and each with the other's tokens.
        return twice + (by_a + by_b) + (by_b + by_a)
    # gᵀ x, and a product of it with A and with B.
    return twice + through + 2 * by_both
