"""What an indexer learns from: the divergence of its scores from the attention that used them.

For a query t and the keys S_t that it attends to, KL(p ‖ softmax of its scores over S_t), where p
is the mean of all heads' attention weights: DeepSeek-V3.2-Exp's paper, section 2.1, equation (4),
of sparse training. Nothing but the indexer gets a gradient of it.

The gradient by the scores is computed together with them, some rows at a time, and only that by the
indexer's queries, keys and weights is kept.

B batch, T queries of this rank, S tokens of a sequence, H heads of the model on this rank.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.tensor_parallel import (
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)

from llm_train.model.indexer import Asked, Choice, Indexer, blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """The attention that is the target: query and key [S, B, H, …] of this rank's heads."""

    query: torch.Tensor
    key: torch.Tensor
    scale: float
    choice: Choice

    def seen(self, places: torch.Tensor) -> torch.Tensor:
        """[B, R, S] true where the queries at `places` attended."""
        if self.choice.allowed is not None:
            return self.choice.allowed[:, places]
        return self.choice.seen.of(places).expand(self.query.shape[1], -1, -1)

    def weights(self, places: torch.Tensor) -> torch.Tensor:
        """[R, B, S]: the sum over this rank's heads."""
        dots = torch.einsum("rbhd,sbhd->bhrs", self.query[places].float(), self.key.float())
        dots = (dots * self.scale).masked_fill(~self.seen(places)[:, None], -torch.inf)
        # megatron-core gives back what is not contiguous without the other ranks' part.
        return dots.softmax(dim=-1).sum(1).transpose(0, 1).contiguous()


def learn(indexer: Indexer, out: torch.Tensor, attended: Attended) -> torch.Tensor:
    """`out`, unchanged; its backward brings the indexer the gradient of its loss.

    The loss is summed over tokens, as the model's is: megatron-core divides both by their number.
    """
    config, asked = indexer.config, attended.choice.asked
    assert asked is not None
    ranks = config.tensor_model_parallel_size
    sources = tuple(x.detach().requires_grad_() for x in (asked.q, asked.k, asked.weights))
    leaves = Asked(q=sources[0], k=sources[1], weights=sources[2], first=asked.first)
    gradients = [torch.zeros_like(x, dtype=torch.float32) for x in sources]
    total = out.new_zeros((), dtype=torch.float32)
    tokens, batch, heads = asked.q.shape[:3]
    # Under sequence parallel a rank attends for the queries of all of them.
    rows_of_one = batch * max(heads, attended.query.shape[2] * ranks)
    for rows in blocks(tokens, rows_of_one=rows_of_one):
        target = _target(attended, asked, rows, ranks=ranks, is_cut=config.sequence_parallel)
        with torch.enable_grad():
            loss = _divergence(leaves, rows, target, attended.seen(asked.places(rows)))
        for kept, more in zip(gradients, torch.autograd.grad(loss, sources), strict=True):
            kept += more
        total += loss.detach()
    mean = total / (batch * len(asked.k))
    indexer.loss = mean if indexer.loss is None else indexer.loss + mean
    weighted = [x * indexer.loss_coefficient for x in gradients]
    taught = _Taught.apply(out, asked.q, asked.k, asked.weights, *weighted, config.grad_scale_func)
    return cast("torch.Tensor", taught)


@torch.no_grad()
def _target(
    attended: Attended, asked: Asked, rows: slice, *, ranks: int, is_cut: bool
) -> torch.Tensor:
    """[B, R, S]: the mean over all heads of all ranks of the attention weights."""
    places = asked.places(rows)
    if is_cut:
        # Every rank's rows, to be summed where they are asked about.
        length = asked.q.shape[0]
        firsts = torch.arange(ranks, device=places.device) * length
        places = (firsts[:, None] + (places - asked.first)).flatten()
        summed = reduce_scatter_to_sequence_parallel_region(attended.weights(places))
    else:
        summed = reduce_from_tensor_model_parallel_region(attended.weights(places))
    heads = attended.query.shape[2] * ranks
    return cast("torch.Tensor", summed).transpose(0, 1) / heads


def _divergence(
    asked: Asked, rows: slice, target_BRS: torch.Tensor, seen_BRS: torch.Tensor
) -> torch.Tensor:
    """Σ over queries of Σ over their keys of p · (log p − log q)."""
    scores = asked.scores(rows).masked_fill(~seen_BRS, -torch.inf)
    log_q = scores.log_softmax(dim=-1).masked_fill(~seen_BRS, 0.0)
    return (torch.xlogy(target_BRS, target_BRS) - target_BRS * log_q).sum()


class _Taught(torch.autograd.Function):
    """A tensor whose backward hands out gradients that are known already, times the loss scale."""

    @staticmethod
    def forward(
        ctx: Any,
        out: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        weights: torch.Tensor,
        grad_q: torch.Tensor,
        grad_k: torch.Tensor,
        grad_weights: torch.Tensor,
        scale: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(grad_q, grad_k, grad_weights)
        ctx.scale, ctx.dtypes = scale, (q.dtype, k.dtype, weights.dtype)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        one = torch.ones(1, device=grads[0].device)
        scale = one if ctx.scale is None else ctx.scale(one)
        known = ((x * scale).to(to) for x, to in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return (grads[0], *known, None, None, None, None)
