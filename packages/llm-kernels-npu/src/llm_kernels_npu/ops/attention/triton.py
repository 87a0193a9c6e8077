"""attention in Triton: dense rows are documents of one length each."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm_kernels_npu.ops.attention import triton_kernels as kernels
from llm_kernels_npu.ops.attention.tiles import attention_tile
from llm_kernels_npu.ops.autograd import Context
from llm_kernels_npu.ops.launch import TARGET, launch
from llm_kernels_npu.ops.tiles import power_of_two, programs, tile_count


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Sequence[int] | None = None,
    cu_seqlens_k: Sequence[int] | None = None,
) -> Tensor:
    """See `reference.attention`; the limits refuse a mask."""
    assert mask is None
    bounds = _even_bounds(*q.shape[:2]) if cu_seqlens is None else tuple(cu_seqlens)
    key_bounds = _even_bounds(*k.shape[:2]) if cu_seqlens is None else bounds
    if cu_seqlens_k is not None:
        key_bounds = tuple(cu_seqlens_k)
    rule = _Rule(
        causal=causal,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        window=window,
        softcap=softcap,
        bounds=bounds,
        key_bounds=key_bounds,
    )
    # torch leaves `apply` untyped.
    run = cast(Callable[..., Tensor], _Attention.apply)  # pyright: ignore[reportUnknownMemberType]
    packed = run(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), sinks, rule)
    return packed.unflatten(0, q.shape[:2])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """What a query sees, and how it is weighed."""

    causal: bool
    scale: float
    window: int | None
    softcap: float | None
    bounds: tuple[int, ...]
    """The documents' first queries, and the last's end."""
    key_bounds: tuple[int, ...]

    def constants(self) -> dict[str, bool]:
        """What kernels are compiled for."""
        return {
            "CAUSAL": self.causal,
            "WINDOWED": self.window is not None,
            "CAPPED": self.softcap is not None,
        }

    def numbers(self) -> tuple[float, float, int]:
        """Scale, softcap and window, as kernels take them."""
        return self.scale, 1.0 if self.softcap is None else self.softcap, self.window or 0


class _AttentionContext(Context, Protocol):
    rule: _Rule


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _AttentionContext, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, rule: _Rule
    ) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        (tokens, heads, dim), value_dim = q.shape, v.shape[-1]
        out = q.new_empty(tokens, heads, value_dim)
        logs = q.new_empty(tokens, heads, dtype=torch.float32)
        tile = attention_tile("forward", _widest(q, v), itemsize=q.itemsize, target=TARGET)
        table = _table(rule.bounds, rule.key_bounds, tile.rows, q.device)
        tasks = table.shape[0] * heads
        numbers = (tasks, heads, heads // k.shape[1], *_strides(q, k, v), dim, value_dim)
        launch(
            kernels.forward_kernel,
            (programs(tasks),),
            *(q, k, v, out, logs, sinks, table, *numbers, *rule.numbers()),
            warps=tile.warps,
            **tile.constants(dim=dim, value_dim=value_dim),
            **rule.constants(),
        )
        ctx.save_for_backward(q, k, v, out, logs, *(() if sinks is None else (sinks,)))
        ctx.rule = rule
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it *args
        ctx: _AttentionContext, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        q, k, v, out, logs, *sinks = ctx.saved_tensors
        grad = grad.contiguous()
        products = _products(out, grad, like=logs)
        tensors = (q, k, v, grad, logs, products)
        grad_q = _query_gradient(tensors, ctx.rule)
        grad_k, grad_v = _key_gradients(tensors, ctx.rule)
        grad_sinks = None
        if sinks:
            shares = torch.exp(sinks[0].float() - logs)
            grad_sinks = -(shares * products).sum(0).to(sinks[0].dtype)
        return grad_q, grad_k, grad_v, grad_sinks, None


def _products(out: Tensor, grad: Tensor, *, like: Tensor) -> Tensor:
    """Each row's product of output and gradient [tokens, heads], float32."""
    products = torch.empty_like(like)
    rows, value_dim = products.numel(), out.shape[-1]
    width = power_of_two(value_dim)
    step = max(1, 4096 // width)
    grid = (programs(tile_count(rows, step)),)
    constants = {"ROWS": step, "DIM": width}
    launch(kernels.product_kernel, grid, out, grad, products, rows, value_dim, **constants)
    return products


def _query_gradient(tensors: tuple[Tensor, ...], rule: _Rule) -> Tensor:
    q, k, v = tensors[:3]
    (tokens, heads, dim), value_dim = q.shape, v.shape[-1]
    grad_q = q.new_empty(tokens, heads, dim)
    tile = attention_tile("queries", _widest(q, v), itemsize=q.itemsize, target=TARGET)
    table = _table(rule.bounds, rule.key_bounds, tile.rows, q.device)
    tasks = table.shape[0] * heads
    numbers = (tasks, heads, heads // k.shape[1], *_strides(q, k, v), dim, value_dim)
    launch(
        kernels.query_kernel,
        (programs(tasks),),
        *(*tensors, grad_q, table, *numbers, *rule.numbers()),
        warps=tile.warps,
        **tile.constants(dim=dim, value_dim=value_dim),
        **rule.constants(),
    )
    return grad_q


def _key_gradients(tensors: tuple[Tensor, ...], rule: _Rule) -> tuple[Tensor, Tensor]:
    q, k, v = tensors[:3]
    (_, heads, dim), (_, groups, value_dim) = q.shape, v.shape
    grad_k, grad_v = k.new_empty(k.shape), v.new_empty(v.shape)
    tile = attention_tile("keys", _widest(q, v), itemsize=q.itemsize, target=TARGET)
    table = _table(rule.key_bounds, rule.bounds, tile.keys, q.device)
    tasks = table.shape[0] * groups
    numbers = (tasks, groups, heads, heads // groups, *_strides(q, k, v), dim, value_dim)
    launch(
        kernels.key_kernel,
        (programs(tasks),),
        *(*tensors, grad_k, grad_v, table, *numbers, *rule.numbers()),
        warps=tile.warps,
        **tile.constants(dim=dim, value_dim=value_dim),
        **rule.constants(),
    )
    return grad_k, grad_v


def _widest(q: Tensor, v: Tensor) -> int:
    return max(q.shape[-1], v.shape[-1])


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Strides of a token and of a head, of each tensor."""
    return tuple(stride for x in tensors for stride in x.stride()[:2])


def _even_bounds(documents: int, length: int) -> tuple[int, ...]:
    return tuple(range(0, (documents + 1) * length, length)) if length else (0,) * (documents + 1)


@functools.lru_cache(maxsize=64)
def _table(
    bounds: tuple[int, ...], other_bounds: tuple[int, ...], step: int, device: torch.device
) -> Tensor:
    """One row a tile of `step` rows.

    [tiles, 5] int32: the tile's first row, its document's stop and begin, the other side's begin
    and stop. Kept, since every layer of a batch asks for the same.
    """
    documents = zip(itertools.pairwise(bounds), itertools.pairwise(other_bounds), strict=True)
    entries = [
        (row, stop, begin, other_begin, other_stop)
        for (begin, stop), (other_begin, other_stop) in documents
        for row in range(begin, stop, step)
    ]
    return torch.tensor(entries, dtype=torch.int32).view(-1, 5).to(device)
