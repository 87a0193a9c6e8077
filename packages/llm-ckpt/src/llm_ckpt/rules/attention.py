"""Rules of attention projections: queries, keys and values, apart or packed, gated or not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_ckpt.arch import Arch, Attention
from llm_ckpt.errors import ArchError
from llm_ckpt.layout import Cut, Shape


@dataclass(frozen=True, slots=True)
class Qkv:
    """Query, key and value projections ⇄ rows `[q … q k v]` for each query group in turn.

    Works for weights and biases alike: everything after axis 0 is carried along. Megatron-core
    splits the fused rows by group (megatron/core/transformer/attention.py). With an output gate the
    rows of q are `[q gate]` head by head, and a group is `[q … q gate … gate k v]`.
    """

    mcore: str
    q: str
    k: str
    v: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of q, k and v."""
        return (self.q, self.k, self.v)

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """`heads * head_dim` rows of q, twice that if gated; `query_groups * head_dim` of k, v."""
        return tuple((rows, *shape[1:]) for rows in _row_counts(_attention(arch)))

    def part_cuts(self, cut: Cut, arch: Arch) -> tuple[Cut, ...]:
        """Each by rows: a rank holds whole groups."""
        del arch
        return (cut, cut, cut)

    def commutes(self, size: int, arch: Arch) -> bool:
        """When a rank holds whole query groups."""
        return _attention(arch).query_groups % size == 0

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """Interleave by query group."""
        return _interleave(parts, _attention(arch))

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """Undo the interleaving."""
        return _separate(tensor, _attention(arch))


@dataclass(frozen=True, slots=True)
class PackedQkv:
    """One tensor of rows `[all q; all k; all v]` ⇄ rows grouped as `Qkv` has them.

    Phi-3's qkv_proj, Baichuan's W_pack, Qwen's and GPT-2's c_attn, ChatGLM's query_key_value.
    """

    mcore: str
    qkv: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The one name."""
        return (self.qkv,)

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """The same shape."""
        del arch
        return (shape,)

    def part_cuts(self, cut: Cut, arch: Arch) -> tuple[Cut, ...]:
        """The rows of q, k and v each by themselves."""
        del cut
        return (Cut(0, _row_counts(_attention(arch))),)

    def commutes(self, size: int, arch: Arch) -> bool:
        """When a rank holds whole query groups."""
        return _attention(arch).query_groups % size == 0

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """Cut at q, k and v, then interleave by query group."""
        attention, rows = _attention(arch), parts[0].shape[0]
        counts = _row_counts(attention)
        sizes = [count * rows // sum(counts) for count in counts]
        return _interleave(torch.split(parts[0], sizes), attention)

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """Undo the interleaving, then stack."""
        return (torch.cat(_separate(tensor, _attention(arch))),)


def _row_counts(attention: Attention) -> tuple[int, int, int]:
    q, kv = (n * attention.head_dim for n in (attention.heads, attention.query_groups))
    return (2 * q if attention.output_gate else q, kv, kv)


def _interleave(parts: Sequence[Tensor], attention: Attention) -> Tensor:
    """Rows of q, k, v (of some ranks' groups) → group after group."""
    dim, rest = attention.head_dim, parts[0].shape[1:]
    groups = parts[1].shape[0] // dim
    q, k, v = (part.reshape(groups, -1, *rest) for part in parts)
    if attention.output_gate:
        heads = q.reshape(groups, -1, 2, dim, *rest)
        q = torch.cat([heads[:, :, i].reshape(groups, -1, *rest) for i in (0, 1)], dim=1)
    return torch.cat([q, k, v], dim=1).reshape(-1, *rest)


def _separate(tensor: Tensor, attention: Attention) -> tuple[Tensor, ...]:
    dim, rest = attention.head_dim, tensor.shape[1:]
    q_rows = attention.heads // attention.query_groups * dim
    width = (2 * q_rows if attention.output_gate else q_rows) + 2 * dim
    by_group = tensor.reshape(-1, width, *rest)
    q, k, v = torch.split(by_group, [width - 2 * dim, dim, dim], dim=1)
    if attention.output_gate:
        halves = [
            half.reshape(q.shape[0], -1, dim, *rest) for half in torch.split(q, q_rows, dim=1)
        ]
        q = torch.stack(halves, dim=2)
    return tuple(part.reshape(-1, *rest) for part in (q, k, v))


def _attention(arch: Arch) -> Attention:
    if arch.attention is None:
        raise ArchError("arch: a Qkv rule needs attention, found null")
    return arch.attention
