"""One linear of each expert over tokens that lie sorted by expert.

M tokens of all experts together, E experts, K inputs, N outputs. Each way of computing it takes a
stack of matrices; the stack lives only while it is used, in backward it is made again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class Products:
    """The two products that a grouped linear and its gradients are made of.

    `tokens`: [M, K] · [E, K, N] → [M, N], every token by the matrix of its expert;
    `outer`: [M, N]ᵀ · [M, K] → [E, N, K], summed over the tokens of each expert.
    Both take the number of tokens of each expert, which sum to M > 0.
    """

    name: str
    tokens: Callable[[torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor]
    outer: Callable[[torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor]


def one_by_one(
    tokens_MK: torch.Tensor, weights_NK: Sequence[torch.Tensor], counts: Sequence[int]
) -> torch.Tensor:
    """[M, N]: each expert multiplies its own tokens."""
    parts = tokens_MK.split(list(counts))
    return torch.cat([F.linear(part, w) for part, w in zip(parts, weights_NK, strict=True)])


def grouped_linear(
    products: Products,
    tokens_MK: torch.Tensor,
    weights_NK: Sequence[torch.Tensor],
    counts: Sequence[int],
) -> torch.Tensor:
    """[M, N]: all experts in one product."""
    out = _GroupedLinear.apply(products, tuple(counts), tokens_MK, *weights_NK)
    return cast("torch.Tensor", out)


def products_for(dtype: torch.dtype, device: str) -> Products:
    """Torch's grouped product where it exists for a dtype and a kind of device, else padding."""
    return _GROUPED_MM.get((dtype, device), PADDED_BMM)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        products: Products,
        counts: tuple[int, ...],
        tokens_MK: torch.Tensor,
        *weights_NK: torch.Tensor,
    ) -> torch.Tensor:
        ctx.products, ctx.counts = products, counts
        ctx.save_for_backward(tokens_MK, *weights_NK)
        if not len(tokens_MK):
            return tokens_MK.new_zeros(0, len(weights_NK[0]))
        return products.tokens(tokens_MK, torch.stack(weights_NK).transpose(1, 2), counts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        tokens_MK, *weights_NK = ctx.saved_tensors
        grad_MN = grads[0].contiguous()
        if not len(tokens_MK):
            zeros = [torch.zeros_like(weight) for weight in weights_NK]
            return None, None, torch.zeros_like(tokens_MK), *zeros
        grad_MK, of_weights = None, [None] * len(weights_NK)
        if ctx.needs_input_grad[2]:
            grad_MK = ctx.products.tokens(grad_MN, torch.stack(weights_NK), ctx.counts)
        if any(ctx.needs_input_grad[3:]):
            of_weights = ctx.products.outer(grad_MN, tokens_MK, ctx.counts).unbind()
        return None, None, grad_MK, *of_weights


def _ends(counts: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(counts, dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)


def _grouped_tokens(
    tokens_MK: torch.Tensor, matrices_EKN: torch.Tensor, counts: Sequence[int]
) -> torch.Tensor:
    return torch._grouped_mm(tokens_MK, matrices_EKN, offs=_ends(counts, tokens_MK.device))  # pyright: ignore[reportPrivateImportUsage]


def _grouped_outer(
    left_MN: torch.Tensor, right_MK: torch.Tensor, counts: Sequence[int]
) -> torch.Tensor:
    return torch._grouped_mm(left_MN.t(), right_MK, offs=_ends(counts, left_MN.device))  # pyright: ignore[reportPrivateImportUsage]


def _padded_tokens(
    tokens_MK: torch.Tensor, matrices_EKN: torch.Tensor, counts: Sequence[int]
) -> torch.Tensor:
    rows = _padded_rows(counts, tokens_MK.device)
    out_EPN = torch.bmm(_pad(tokens_MK, rows, counts), matrices_EKN)
    return out_EPN.flatten(0, 1)[rows]


def _padded_outer(
    left_MN: torch.Tensor, right_MK: torch.Tensor, counts: Sequence[int]
) -> torch.Tensor:
    rows = _padded_rows(counts, left_MN.device)
    return torch.bmm(_pad(left_MN, rows, counts).transpose(1, 2), _pad(right_MK, rows, counts))


def _padded_rows(counts: Sequence[int], device: torch.device) -> torch.Tensor:
    """[M]: the row of every token when each expert's tokens are filled up to the most."""
    each = torch.tensor(counts, device=device)
    filling = torch.arange(len(counts), device=device) * max(counts) - (each.cumsum(0) - each)
    return torch.arange(sum(counts), device=device) + filling.repeat_interleave(each)


def _pad(tokens_MK: torch.Tensor, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """[E, P, K] with P the most tokens of an expert."""
    padded = tokens_MK.new_zeros(len(counts) * max(counts), tokens_MK.shape[1])
    padded[rows] = tokens_MK
    return padded.view(len(counts), max(counts), -1)


GROUPED_MM = Products("torch._grouped_mm", _grouped_tokens, _grouped_outer)
PADDED_BMM = Products("padded torch.bmm", _padded_tokens, _padded_outer)
_GROUPED_MM: Mapping[tuple[torch.dtype, str], Products] = MappingProxyType(
    {(torch.bfloat16, device): GROUPED_MM for device in ("cpu", "cuda")}
)
