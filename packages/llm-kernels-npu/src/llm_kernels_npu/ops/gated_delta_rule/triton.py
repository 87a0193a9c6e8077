"""gated_delta_rule in Triton: the chunked form of `torch.py`, on `ops/recurrence.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.checks import wide
from llm_kernels_npu.ops.decay import bounded
from llm_kernels_npu.ops.gated_delta_rule import triton_kernels as kernels
from llm_kernels_npu.ops.launch import launch
from llm_kernels_npu.ops.recurrence import Gradients, Recurrence, Written, by_group, read, write
from llm_kernels_npu.ops.recurrence import gradients as recurrence_gradients
from llm_kernels_npu.ops.tiles import programs, tile_count


def gated_delta_rule(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTH: Tensor,
    beta_BTH: Tensor,
    initial_state: Tensor | None = None,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.gated_delta_rule`."""
    scale = q_BTGK.shape[-1] ** -0.5 if scale is None else scale
    first = None if initial_state is None else wide(initial_state)
    # torch leaves `apply` untyped.
    run = cast(
        Callable[..., tuple[Tensor, Tensor]],
        _DeltaRule.apply,  # pyright: ignore[reportUnknownMemberType]
    )
    return run(q_BTGK, k_BTGK, v_BTHV, bounded(log_decay_BTH), beta_BTH, first, scale)


class _DeltaContext(Context, Protocol):
    scale: float


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _DeltaContext,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        beta: Tensor,
        first: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        tensors = tuple(x.contiguous() for x in (query, key, value, log_decay, beta))
        first = None if first is None else first.contiguous()
        call = _recurrence(tensors, scale)
        solved = _solve(call, *tensors[2::2], keep_inverses=False)
        written = write(call, solved.given, first=first, forgotten=solved.forgotten)
        ctx.save_for_backward(*tensors, *(() if first is None else (first,)))
        ctx.scale = scale
        return read(call, written, dtype=value.dtype), written.last

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _DeltaContext, grad: Tensor, grad_last: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, None]:
        query, key, value, log_decay, beta, *firsts = ctx.saved_tensors
        first = firsts[0] if firsts else None
        call = _recurrence((query, key, value, log_decay, beta), ctx.scale)
        # Made again: kept, they would take more memory than all inputs.
        solved = _solve(call, value, beta, keep_inverses=True)
        written = write(call, solved.given, first=first, forgotten=solved.forgotten)
        found = recurrence_gradients(
            call, written, grad.contiguous(), grad_last.contiguous(), forgotten=solved.forgotten
        )
        grad_value, grad_beta = _solve_gradients(call, value, beta, solved, written, found)
        return (
            by_group(found.query, query),
            by_group(found.key, key),
            grad_value,
            found.log_decay.to(log_decay.dtype),
            grad_beta,
            None if first is None else found.first,
            None,
        )


def _recurrence(tensors: tuple[Tensor, ...], scale: float) -> Recurrence:
    query, key, value, log_decay, _ = tensors
    heads, value_dim = value.shape[2:]
    return Recurrence(
        query=query, key=key, log_decay=log_decay, heads=heads, value_dim=value_dim, scale=scale
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solved:
    """What the tokens write, as a part of the state at their chunk's start: given - forgotten S."""

    given: Tensor
    """[B, T, H, V], float32."""
    forgotten: Tensor
    """[B, T, H, K], float32."""
    inverses: Tensor | None
    """[B * H * N, C, C], float32, where they are kept."""


def _solve(call: Recurrence, value: Tensor, beta: Tensor, *, keep_inverses: bool) -> _Solved:
    batches, tokens, heads = call.log_decay.shape
    pairs, chunk = call.numbers[0], call.tile.chunk
    given = torch.empty_like(value, dtype=torch.float32)
    forgotten = given.new_empty(batches, tokens, heads, call.key.shape[3])
    inverses = given.new_empty(pairs * call.chunks, chunk, chunk) if keep_inverses else None
    launch(
        kernels.solve_kernel,
        (programs(pairs * call.chunks),),
        *(call.key, value, beta, call.log_decay, forgotten, given, inverses, *call.numbers),
        **call.constants,
    )
    return _Solved(given=given, forgotten=forgotten, inverses=inverses)


def _solve_gradients(
    call: Recurrence,
    value: Tensor,
    beta: Tensor,
    solved: _Solved,
    written: Written,
    found: Gradients,
) -> tuple[Tensor, Tensor]:
    """Value's and beta's; those of key and log decay in `found` are completed in place."""
    pairs, tokens, heads, _, *dims = call.numbers
    grad_forgotten = torch.empty_like(solved.forgotten)
    programs_by_chunk = (programs(pairs * call.chunks),)
    launch(
        kernels.forgotten_gradient_kernel,
        programs_by_chunk,
        *(written.states, found.values, grad_forgotten, pairs, tokens, heads, *dims),
        **call.constants,
    )
    grad_value, grad_beta = torch.empty_like(value), torch.empty_like(beta)
    launch(
        kernels.solve_gradient_kernel,
        programs_by_chunk,
        *(call.key, value, beta, call.log_decay, solved.forgotten, solved.given),
        *(_turned(call, solved, grad_forgotten), _turned(call, solved, found.values)),
        *(found.key, grad_value, grad_beta, found.log_decay, *call.numbers),
        **_tile_constants(call),
    )
    return grad_value, grad_beta


def _turned(call: Recurrence, solved: _Solved, grad: Tensor) -> Tensor:
    """The gradient of what the inverses multiplied, from that of the product [B, T, H, D]."""
    turned, dim, constants = torch.empty_like(grad), grad.shape[-1], _tile_constants(call)
    tiles = tile_count(dim, constants["TILE"])
    pairs, tokens, heads = call.numbers[:3]
    launch(
        kernels.turn_kernel,
        (programs(pairs * call.chunks, others=tiles), tiles),
        *(solved.inverses, grad, turned, pairs, tokens, heads, dim),
        **constants,
    )
    return turned


def _tile_constants(call: Recurrence) -> dict[str, Any]:
    """Of kernels that take keys as values, tile by tile."""
    named = dict(call.constants)
    return {"CHUNK": named["CHUNK"], "TILE": named["VALUE"], "PRECISION": named["PRECISION"]}
