"""Attention of runs of queries over runs of keys, merged as if it were one softmax.

Every pair gives an output and the log of its sum of exponentials (lse), from which outputs of
several pairs are merged; backward needs no more than the final output and lse. Formulas: Dao 2023,
https://arxiv.org/abs/2307.08691, sections 2.3 and 3.1.

B batch, H query heads, G key and value heads, T queries, S keys, D head dim, E value head dim.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from llm_train.model.context_parallel.flash import kernel_for
from llm_train.model.context_parallel.spans import Pair, Sight


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How a score comes from a query and a key; `slopes` [H] times the distance is taken off."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    slopes: torch.Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """A score is the scaled product alone."""
        return self.softcap is None and self.slopes is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The output [B, H, T, E] and lse [B, H, T] of the pairs so far, in fp32 or wider."""

    out: torch.Tensor
    lse: torch.Tensor

    @classmethod
    def nothing(cls, q_BHTD: torch.Tensor, v_BGSE: torch.Tensor) -> "Merged":
        """No pair yet."""
        dtype = wide(q_BHTD.dtype)
        out = q_BHTD.new_zeros(*q_BHTD.shape[:3], v_BGSE.shape[-1], dtype=dtype)
        return cls(out=out, lse=q_BHTD.new_full(q_BHTD.shape[:3], -torch.inf, dtype=dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """What backward adds to, in the shapes of queries, keys and values; in fp32 or wider."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


def attend(
    merged: Merged,
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSE: torch.Tensor,
    *,
    pairs: Iterable[Pair],
    scoring: Scoring,
) -> None:
    """Merge the pairs' attention into `merged`."""
    for pair in pairs:
        batch, queries, keys = pair.batch, pair.queries.rows, pair.keys.rows
        q, k, v = q_BHTD[batch, :, queries], k_BGSD[batch, :, keys], v_BGSE[batch, :, keys]
        kernel = kernel_for(q, v) if _can_fuse(pair, scoring) else None
        if kernel is not None:
            is_causal = pair.sight is Sight.DIAGONAL
            out, lse = kernel.forward(q, k, v, is_causal=is_causal, scale=scoring.scale)
        else:
            out, lse = _forward(q, k, v, pair, scoring)
        _merge(merged.out[batch, :, queries], merged.lse[batch, :, queries], out, lse)


def attend_backward(
    gradients: Gradients,
    grad_BHTE: torch.Tensor,
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSE: torch.Tensor,
    *,
    out_BHTE: torch.Tensor,
    lse_BHT: torch.Tensor,
    pairs: Iterable[Pair],
    scoring: Scoring,
) -> None:
    """Add the pairs' part of the gradients, from the output and lse of all pairs together."""
    for pair in pairs:
        batch, queries, keys = pair.batch, pair.queries.rows, pair.keys.rows
        q, k, v = q_BHTD[batch, :, queries], k_BGSD[batch, :, keys], v_BGSE[batch, :, keys]
        grad, out, lse = (x[batch, :, queries] for x in (grad_BHTE, out_BHTE, lse_BHT))
        kernel = kernel_for(q, v) if _can_fuse(pair, scoring) else None
        if kernel is not None:
            is_causal = pair.sight is Sight.DIAGONAL
            parts = kernel.backward(
                grad, q, k, v, out=out, lse=lse, is_causal=is_causal, scale=scoring.scale
            )
        else:
            parts = _backward(grad, q, k, v, out, lse, pair, scoring)
        gradients.q[batch, :, queries] += parts[0]
        gradients.k[batch, :, keys] += parts[1]
        gradients.v[batch, :, keys] += parts[2]


def _can_fuse(pair: Pair, scoring: Scoring) -> bool:
    return scoring.is_plain and pair.sight is not Sight.PART


def _merge(
    out: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, lse_of_more: torch.Tensor
) -> None:
    both = torch.logaddexp(lse, lse_of_more)
    # A query that has seen nothing yet has an lse of -inf, and weighs nothing.
    floor = both.clamp(min=torch.finfo(both.dtype).min)
    out.mul_((lse - floor).exp()[..., None])
    out.add_(more * (lse_of_more - floor).exp()[..., None])
    lse.copy_(both)


def _forward(
    q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSE: torch.Tensor, pair: Pair, scoring: Scoring
) -> tuple[torch.Tensor, torch.Tensor]:
    """What no fused kernel says: scores whole, in fp32 or wider."""
    scores_BGRTS, _ = _scores(_grouped(q_BHTD, k_BGSD), _wide(k_BGSD), pair, scoring)
    lse = scores_BGRTS.logsumexp(-1)
    floor = lse.clamp(min=torch.finfo(lse.dtype).min)
    weights = (scores_BGRTS - floor[..., None]).exp()
    out = weights @ _wide(v_BGSE)[:, :, None]
    return out.flatten(1, 2), lse.flatten(1, 2)


def _backward(
    grad_BHTE: torch.Tensor,
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSE: torch.Tensor,
    out_BHTE: torch.Tensor,
    lse_BHT: torch.Tensor,
    pair: Pair,
    scoring: Scoring,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = _grouped(q_BHTD, k_BGSD), _wide(k_BGSD), _wide(v_BGSE)
    grad, out, lse = (_grouped(x, k_BGSD) for x in (grad_BHTE, out_BHTE, lse_BHT))
    scores, slope = _scores(q, k, pair, scoring)
    weights = (scores - lse[..., None]).exp()
    grad_v = (weights.transpose(-1, -2) @ grad).sum(2)
    grad_weights = grad @ v[:, :, None].transpose(-1, -2)
    grad_scores = weights * (grad_weights - (grad * out).sum(-1, keepdim=True))
    if slope is not None:
        grad_scores = grad_scores * slope
    grad_scores = grad_scores * scoring.scale
    grad_q = (grad_scores @ k[:, :, None]).flatten(1, 2)
    grad_k = (grad_scores.transpose(-1, -2) @ q).sum(2)
    return grad_q, grad_k, grad_v


def _scores(
    q_BGRTD: torch.Tensor, k_BGSD: torch.Tensor, pair: Pair, scoring: Scoring
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores, -inf where hidden, and the derivative of the softcap where there is one."""
    scores = q_BGRTD @ k_BGSD[:, :, None].transpose(-1, -2) * scoring.scale
    slope = None
    if scoring.softcap is not None:
        bounded = torch.tanh(scores / scoring.softcap)
        scores, slope = bounded * scoring.softcap, 1 - bounded.square()
    if pair.sight is Sight.WHOLE and scoring.slopes is None:
        return scores, slope
    distance = _distance(pair, scores.device)
    if scoring.slopes is not None:
        slopes = scoring.slopes.to(scores.dtype).unflatten(0, scores.shape[1:3])
        scores = scores - slopes[:, :, None, None] * distance
    hidden = distance < 0
    if scoring.window is not None:
        hidden |= distance >= scoring.window
    return scores.masked_fill(hidden, -torch.inf), slope


def _distance(pair: Pair, device: torch.device) -> torch.Tensor:
    """[T, S]: how far behind the query a key lies."""
    queries, keys = (
        torch.arange(span.first, span.end, device=device) for span in (pair.queries, pair.keys)
    )
    return queries[:, None] - keys[None, :]


def _grouped(x_BH: torch.Tensor, k_BGSD: torch.Tensor) -> torch.Tensor:
    """[B, H, …] as [B, G, H / G, …], in fp32 or wider."""
    return _wide(x_BH).unflatten(1, (k_BGSD.shape[1], -1))


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(wide(x.dtype))
