"""Ring attention (https://arxiv.org/abs/2310.01889): keys and values travel, queries stay.

The next exchange is in flight while a step is computed. In backward keys and values travel again,
and their gradients with them, one step behind, until they are home.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist

from llm_train.model.context_parallel.blocks import (
    Gradients,
    Merged,
    Scoring,
    attend,
    attend_backward,
    wide,
)
from llm_train.model.context_parallel.spans import Pair

# gloo matches messages by tag, NCCL and HCCL by order.
_KEYS, _GRADIENTS = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """A rank's neighbours, as ranks of `group`."""

    group: dist.ProcessGroup
    before: int
    after: int

    def pass_on(self, tensor: torch.Tensor, tag: int) -> "Transit":
        """Send `tensor` to the rank after, and take as much from the rank before."""
        arriving = torch.empty_like(tensor)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, tensor, group=self.group, group_peer=self.after, tag=tag),
                dist.P2POp(dist.irecv, arriving, group=self.group, group_peer=self.before, tag=tag),
            ]
        )
        return Transit(leaving=tensor, arriving=arriving, works=works)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transit:
    """An exchange in flight; neither tensor may be touched before `wait`."""

    leaving: torch.Tensor
    arriving: torch.Tensor
    works: Sequence[dist.Work]

    def wait(self) -> torch.Tensor:
        """What has arrived."""
        for work in self.works:
            work.wait()
        return self.arriving


def ring_attention(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSE: torch.Tensor,
    *,
    sinks: torch.Tensor | None,
    scoring: Scoring,
    steps: Sequence[Sequence[Pair]],
    ring: Ring | None,
) -> torch.Tensor:
    """[B, H, T, E]: step s sees the keys and values of the rank s places before, in its pairs.

    One step needs no ring. `sinks` [H]: scores that take part in the softmax and give nothing.
    """
    assert len(steps) == 1 or ring is not None
    out = _RingAttention.apply(q_BHTD, k_BGSD, v_BGSE, sinks, scoring, steps, ring)
    return cast("torch.Tensor", out)


class _RingAttention(torch.autograd.Function):
    """Keeps its inputs, the output and the lse; scores are computed again in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BHTD: torch.Tensor,
        k_BGSD: torch.Tensor,
        v_BGSE: torch.Tensor,
        sinks: torch.Tensor | None,
        scoring: Scoring,
        steps: Sequence[Sequence[Pair]],
        ring: Ring | None,
    ) -> torch.Tensor:
        merged = Merged.nothing(q_BHTD, v_BGSE)
        both = _flat(k_BGSD, v_BGSE) if ring is not None else None
        k, v = k_BGSD, v_BGSE
        for step, pairs in enumerate(steps):
            coming = None
            if ring is not None and both is not None and step + 1 < len(steps):
                coming = ring.pass_on(both, _KEYS)
            attend(merged, q_BHTD, k, v, pairs=pairs, scoring=scoring)
            if coming is not None:
                both = coming.wait()
                k, v = _views(both, k_BGSD, v_BGSE)
        lse = merged.lse
        if sinks is not None:
            lse = torch.logaddexp(lse, sinks.to(lse.dtype)[None, :, None])
            merged.out.mul_((merged.lse - lse).exp()[..., None])
        out = merged.out.to(q_BHTD.dtype)
        ctx.save_for_backward(q_BHTD, k_BGSD, v_BGSE, sinks, out, lse)
        ctx.scoring, ctx.steps, ctx.ring = scoring, steps, ring
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        q, k_mine, v_mine, sinks, out, lse = ctx.saved_tensors
        ring: Ring | None = ctx.ring
        (grad,) = grads
        grad_q = torch.zeros_like(q, dtype=wide(q.dtype))
        both = _flat(k_mine, v_mine) if ring is not None else None
        k, v, travelling = k_mine, v_mine, None
        grad_both = grad.new_empty(0)
        for step, pairs in enumerate(ctx.steps):
            coming = None
            if ring is not None and both is not None and step + 1 < len(ctx.steps):
                coming = ring.pass_on(both, _KEYS)
            grad_both = grad.new_zeros(k.numel() + v.numel(), dtype=wide(q.dtype))
            grad_k, grad_v = _views(grad_both, k_mine, v_mine)
            attend_backward(
                Gradients(q=grad_q, k=grad_k, v=grad_v),
                grad,
                q,
                k,
                v,
                out_BHTE=out,
                lse_BHT=lse,
                pairs=pairs,
                scoring=ctx.scoring,
            )
            if travelling is not None:
                grad_both += travelling.wait()
            travelling = ring.pass_on(grad_both, _GRADIENTS) if ring is not None else None
            if coming is not None:
                both = coming.wait()
                k, v = _views(both, k_mine, v_mine)
        if travelling is not None:
            grad_both = travelling.wait()
        grad_k, grad_v = _views(grad_both, k_mine, v_mine)
        grad_sinks = None if sinks is None else _sink_gradient(sinks, grad, out, lse)
        kept = grad_q.to(q.dtype), grad_k.to(q.dtype), grad_v.to(q.dtype), grad_sinks
        return (*kept, None, None, None)


def _sink_gradient(
    sinks: torch.Tensor, grad: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
) -> torch.Tensor:
    """A sink's weight gives nothing: its gradient is what it takes from the others."""
    weight = (sinks.to(lse.dtype)[None, :, None] - lse).exp()
    return -(weight * (grad.to(lse.dtype) * out).sum(-1)).sum((0, 2)).to(sinks.dtype)


def _flat(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Both in one message."""
    return torch.cat([k.reshape(-1), v.reshape(-1)])


def _views(flat: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    """The parts of a message, in the shapes of k and v."""
    parts = flat.split([k.numel(), v.numel()])
    return [part.view(x.shape) for part, x in zip(parts, (k, v), strict=True)]
