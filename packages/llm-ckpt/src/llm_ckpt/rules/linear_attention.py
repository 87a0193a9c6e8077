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
            for kind in torch.split(part.reshape(-1, sum(sizes), *rest), sizes, dim=1)
        ]
        return torch.cat(kinds)

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """Deal each kind of row out to the key heads."""
        both, rest = _per_key_head(_gdn(arch)), tensor.shape[1:]
        heads = tensor.shape[0] // sum(map(sum, both))
        kinds = torch.split(tensor, [heads * size for sizes in both for size in sizes])
        by_head = [kind.reshape(heads, -1, *rest) for kind in kinds]
        count = len(both[0])
        return tuple(
            torch.cat(group, dim=1).reshape(-1, *rest)
            for group in (by_head[:count], by_head[count:])
        )


@dataclass(frozen=True, slots=True)
class GdnApart:
    """Qwen3.5's four input projections ⇄ megatron-core's one, end to end: q k v, z, b and a."""

    mcore: str
    qkv: str
    z: str
    b: str
    a: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of all four."""
        return (self.qkv, self.z, self.b, self.a)

    def part_shapes(self, shape: Shape, arch: Arch) -> tuple[Shape, ...]:
        """Rows of all keys twice and all values, of all values, and twice one for each of them."""
        gdn = _gdn(arch)
        value = gdn.value_heads * gdn.value_head_dim
        sizes = (shape[0] - value - 2 * gdn.value_heads, value, gdn.value_heads, gdn.value_heads)
        return tuple((size, *shape[1:]) for size in sizes)

    def part_cuts(self, cut: Cut, arch: Arch) -> tuple[Cut, ...]:
        """q, k and v each by themselves; the others by rows."""
        del cut
        gdn = _gdn(arch)
        key, value = gdn.key_heads * gdn.key_head_dim, gdn.value_heads * gdn.value_head_dim
        return (Cut(0, (key, key, value)), ROWS, ROWS, ROWS)

    def commutes(self, size: int, arch: Arch) -> bool:
        """When a rank holds whole key heads."""
        return _gdn(arch).key_heads % size == 0

    def merge(self, parts: Sequence[Tensor], arch: Arch) -> Tensor:
        """Stack."""
        del arch
        return torch.cat(list(parts))

    def split(self, tensor: Tensor, arch: Arch) -> tuple[Tensor, ...]:
        """Undo the stacking, of all rows or of a rank's."""
        wanted = [shape[0] for shape in self.part_shapes(_in_shape(tensor, arch), arch)]
        rows = [size * tensor.shape[0] // sum(wanted) for size in wanted]
        return tuple(torch.split(tensor, rows))


def _in_shape(tensor: Tensor, arch: Arch) -> Shape:
    """Shape of the whole projection that `tensor` is a rank's piece of."""
    gdn = _gdn(arch)
    key, value = gdn.key_heads * gdn.key_head_dim, gdn.value_heads * gdn.value_head_dim
    return (2 * (key + value + gdn.value_heads), *tensor.shape[1:])


def _per_key_head(gdn: Gdn) -> tuple[list[int], list[int]]:
    """Rows of a key head in each of the two tensors, kind by kind."""
    values = gdn.value_heads // gdn.key_heads
    wide = values * gdn.value_head_dim
    return [gdn.key_head_dim, gdn.key_head_dim, wide, wide], [values, values]


def _gdn(arch: Arch) -> Gdn:
    if arch.gdn is None:
        raise ArchError("arch: a GdnIn rule needs gdn, found null")
    return arch.gdn
