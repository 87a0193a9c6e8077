"""Linear recurrences over chunks in Triton: what gated_delta_rule and mamba2_scan share."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from llm_kernels_npu.ops import recurrence_kernels as kernels
from llm_kernels_npu.ops.launch import TARGET, launch
from llm_kernels_npu.ops.recurrence_tiles import RecurrenceTile, recurrence_tile
from llm_kernels_npu.ops.tiles import programs, tile_count

# B batch, T tokens, H heads, G groups of heads, N chunks, K key dim, V value dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """What all kernels of a call read; the tensors are contiguous."""

    query: Tensor
    """[B, T, G, K]"""
    key: Tensor
    """[B, T, G, K]"""
    log_decay: Tensor
    """[B, T, H]"""
    heads: int
    value_dim: int
    scale: float

    @property
    def tile(self) -> RecurrenceTile:
        """The tile of every kernel of this call."""
        tokens, key_dim = self.key.shape[1], self.key.shape[3]
        return recurrence_tile(tokens, key_dim, self.value_dim, target=TARGET)

    @property
    def chunks(self) -> int:
        """How many there are: N."""
        return tile_count(self.key.shape[1], self.tile.chunk)

    @property
    def constants(self) -> Mapping[str, Any]:
        """What the kernels are compiled for."""
        # TF32's 11 bits are bfloat16's and more; an NPU multiplies float32 as it is.
        rounded = self.key.itemsize == 2 and TARGET == "cuda"
        precision = "tf32" if rounded else "ieee"
        return MappingProxyType({**self.tile.constants(), "PRECISION": precision})

    @property
    def numbers(self) -> tuple[int, ...]:
        """Sizes, as kernels take them."""
        batches, tokens, groups, key_dim = self.key.shape
        share = self.heads // groups
        return batches * self.heads, tokens, self.heads, share, key_dim, self.value_dim

    def grid(self, *, by_chunk: bool) -> tuple[int, int]:
        """Programs by heads, or by heads and chunks; and by tiles of values."""
        columns = tile_count(self.value_dim, self.tile.value)
        tasks = self.numbers[0] * (self.chunks if by_chunk else 1)
        return programs(tasks, others=columns), columns

    def new_states(self) -> Tensor:
        """[B, H, N, K, V], float32, unwritten."""
        batches, _, _, key_dim = self.key.shape
        sizes = (batches, self.heads, self.chunks, key_dim, self.value_dim)
        return self.key.new_empty(sizes, dtype=torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The states of a call, float32."""

    states: Tensor
    """[B, H, N, K, V], at each chunk's start."""
    values: Tensor
    """[B, T, H, V], what the tokens write."""
    last: Tensor
    """[B, H, K, V]"""


def write(
    call: Recurrence, values: Tensor, *, first: Tensor | None, forgotten: Tensor | None = None
) -> Written:
    """The states that values [B, T, H, V] make of the first; `forgotten` [B, T, H, K]."""
    states = call.new_states()
    last = torch.empty_like(states[:, :, 0], memory_format=torch.contiguous_format)
    written = None if forgotten is None else torch.empty_like(values)
    launch(
        kernels.state_kernel,
        call.grid(by_chunk=False),
        *(call.key, values, forgotten, call.log_decay, first, states, written, last),
        *call.numbers,
        **call.constants,
    )
    return Written(states=states, values=values if written is None else written, last=last)


def read(call: Recurrence, written: Written, *, dtype: torch.dtype) -> Tensor:
    """The outputs [B, T, H, V]."""
    out = torch.empty_like(written.values, dtype=dtype)
    launch(
        kernels.output_kernel,
        call.grid(by_chunk=True),
        *(call.query, call.key, written.values, call.log_decay, written.states, out),
        *(*call.numbers, call.scale),
        **call.constants,
    )
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """The gradients of a call, float32; query's and key's are each head's."""

    query: Tensor
    key: Tensor
    log_decay: Tensor
    values: Tensor
    first: Tensor


def gradients(
    call: Recurrence,
    written: Written,
    grad: Tensor,
    grad_last: Tensor,
    *,
    forgotten: Tensor | None = None,
) -> Gradients:
    """Of outputs' and last state's gradients those of what made them; all contiguous."""
    batches, tokens, _, key_dim = call.key.shape
    grad_states, first = torch.empty_like(written.states), torch.empty_like(written.last)
    values = torch.empty_like(written.values)
    launch(
        kernels.reverse_kernel,
        call.grid(by_chunk=False),
        *(call.query, call.key, forgotten, call.log_decay, grad, grad_last),
        *(grad_states, values, first, *call.numbers, call.scale),
        **call.constants,
    )
    query = values.new_empty(batches, tokens, call.heads, key_dim)
    key, log_decay = torch.empty_like(query), values.new_empty(call.log_decay.shape)
    launch(
        kernels.gradient_kernel,
        (programs(call.numbers[0] * call.chunks),),
        *(call.query, call.key, written.values, call.log_decay, written.states, grad, grad_states),
        *(query, key, log_decay, *call.numbers, call.scale),
        **call.constants,
    )
    return Gradients(query=query, key=key, log_decay=log_decay, values=values, first=first)


def by_group(grad_BTHK: Tensor, like: Tensor) -> Tensor:
    """The heads' gradients added up by group, as `like` [B, T, G, K]."""
    return grad_BTHK.unflatten(2, (like.shape[2], -1)).sum(3).to(like.dtype)
