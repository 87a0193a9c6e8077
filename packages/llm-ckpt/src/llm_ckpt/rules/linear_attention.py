"""Rules of linear attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_ckpt.arch import Arch, Gdn
from llm_ckpt.errors import ArchError
from llm_ckpt.layout import ROWS, Cut, Shape


@dataclass(frozen=True, slots=True)
class GdnIn:
    """Qwen3-Next's two input projections ⇄ megatron-core's one.

    Hugging Face has, key head by key head, `[q k v … v z … z]` in one tensor and `[b … b a … a]` in
    the other; megatron-core has all q, k, v, z, b (beta) and a (alpha) in turn.
    """

    mcore: str
    qkvz: str
    ba: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of both."""
        return (self.qkvz, self.ba)

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """All but the last `2 * value_heads` rows, and those."""
        rows = 2 * _gdn(arch).value_heads
        return ((shape[0] - rows, *shape[1:]), (rows, *shape[1:]))

    def part_cuts(self, cut: Cut, arch: Arch) -> tuple[Cut, ...]:
        """Each by rows: a rank holds whole key heads."""
        del cut, arch
        return (ROWS, ROWS)

    def commutes(self, size: int, arch: Arch) -> bool:
        """When a rank holds whole key heads."""
        return _gdn(arch).key_heads % size == 0

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """Gather each kind of row from all key heads."""
        rest = parts[0].shape[1:]
        kinds = [
            kind.reshape(-1, *rest)
            for part, sizes in zip(parts, _per_key_head(_gdn(arch)), strict=True)
            for kind in part.reshape(-1, sum(sizes), *rest).split(sizes, dim=1)
        ]
        return torch.cat(kinds)

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """Deal each kind of row out to the key heads."""
        both, rest = _per_key_head(_gdn(arch)), tensor.shape[1:]
        heads = tensor.shape[0] // sum(map(sum, both))
        kinds = tensor.split([heads * size for sizes in both for size in sizes])
        by_head = [kind.reshape(heads, -1, *rest) for kind in kinds]
        count = len(both[0])
        return tuple(
            torch.cat(group, dim=1).reshape(-1, *rest)
            for group in (by_head[:count], by_head[count:])
        )


def _per_key_head(gdn: Gdn) -> tuple[list[int], list[int]]:
    """Rows of a key head in each of the two tensors, kind by kind."""
    values = gdn.value_heads // gdn.key_heads
    wide = values * gdn.value_head_dim
    return [gdn.key_head_dim, gdn.key_head_dim, wide, wide], [values, values]


def _gdn(arch: Arch) -> Gdn:
    if arch.gdn is None:
        raise ArchError("arch: a GdnIn rule needs gdn, found null")
    return arch.gdn
