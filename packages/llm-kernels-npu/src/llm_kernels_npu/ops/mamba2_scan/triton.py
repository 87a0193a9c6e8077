"""mamba2_scan in Triton: the recurrence of `ops/recurrence.py`, of values dt · x."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.ops.decay import bounded
from llm_kernels_npu.ops.recurrence import Recurrence, by_group, gradients, read, write


def mamba2_scan(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    d_H: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.mamba2_scan`."""
    x, dt = wide(x_BTHP), wide(dt_BTH)
    first = None if initial_state is None else wide(initial_state).mT
    # torch leaves `apply` untyped.
    run = cast(
        Callable[..., tuple[Tensor, Tensor]],
        _Scan.apply,  # pyright: ignore[reportUnknownMemberType]
    )
    out, last = run(c_BTGN, b_BTGN, x * dt.unsqueeze(-1), bounded(dt * wide(a_H)), first)
    out = out if d_H is None else out + wide(d_H)[:, None] * x
    return out.to(x_BTHP.dtype), last.mT


class _ScanContext(Context, Protocol):
    has_first: bool


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _ScanContext,
        query: Tensor,
        key: Tensor,
        values: Tensor,
        log_decay: Tensor,
        first: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        call = _recurrence(query.contiguous(), key.contiguous(), values, log_decay.contiguous())
        values, first = values.contiguous(), None if first is None else first.contiguous()
        written = write(call, values, first=first)
        kept = (call.query, call.key, values, call.log_decay)
        ctx.save_for_backward(*kept, *(() if first is None else (first,)))
        ctx.has_first = first is not None
        return read(call, written, dtype=values.dtype), written.last

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _ScanContext, grad: Tensor, grad_last: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        query, key, values, log_decay, *first = ctx.saved_tensors
        call = _recurrence(query, key, values, log_decay)
        # Made again: kept, the states would take more memory than all inputs.
        written = write(call, values, first=first[0] if first else None)
        found = gradients(call, written, grad.contiguous(), grad_last.contiguous())
        return (
            by_group(found.query, query),
            by_group(found.key, key),
            found.values,
            found.log_decay,
            found.first if ctx.has_first else None,
        )


def _recurrence(query: Tensor, key: Tensor, values: Tensor, log_decay: Tensor) -> Recurrence:
    heads, value_dim = values.shape[2:]
    return Recurrence(
        query=query, key=key, log_decay=log_decay, heads=heads, value_dim=value_dim, scale=1.0
    )
