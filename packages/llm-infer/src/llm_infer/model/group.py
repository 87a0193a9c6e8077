"""Ranks that share one model's work, and what they tell each other of its tensors."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Group(Protocol):
    """Ranks 0 to `size` - 1 that compute the same steps, each a part of every layer."""

    @property
    def rank(self) -> int:
        """Which one this is."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def summed(self, x: Tensor) -> Tensor:
        """The sum of the ranks' tensors of one shape, the same to the bit on all."""
        ...

    def joined(self, x: Tensor) -> Tensor:
        """The ranks' tensors [T, N] side by side [T, size * N], on all."""
        ...

    def collected(self, x: Tensor) -> Tensor:
        """The same on rank 0; others get their own back."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """One rank, which has everything."""

    rank: int = 0
    size: int = 1

    def summed(self, x: Tensor) -> Tensor:
        """See `Group`."""
        return x

    def joined(self, x: Tensor) -> Tensor:
        """See `Group`."""
        return x

    def collected(self, x: Tensor) -> Tensor:
        """See `Group`."""
        return x


ALONE = Alone()


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of torch.distributed's default process group, which must be there by first use."""

    rank: int
    size: int

    def summed(self, x: Tensor) -> Tensor:
        """See `Group`.

        On a CPU in the order of the ranks: gloo's own sum takes an order that depends on how many
        numbers there are, so a token's would depend on its neighbours in the step.
        """
        if x.device.type != "cpu":
            x = x.contiguous()
            dist.all_reduce(x)
            return x
        first, *others = self._pieces(x)
        total = first.float()
        for piece in others:
            total = total + piece
        return total.to(x.dtype)

    def joined(self, x: Tensor) -> Tensor:
        """See `Group`."""
        return torch.cat(list(self._pieces(x)), dim=-1)

    def collected(self, x: Tensor) -> Tensor:
        """See `Group`."""
        x = x.contiguous()
        if self.rank:
            dist.gather(x, None, dst=0)
            return x
        pieces = [torch.empty_like(x) for _ in range(self.size)]
        dist.gather(x, pieces, dst=0)
        return torch.cat(pieces, dim=-1)

    def _pieces(self, x: Tensor) -> Tensor:
        """The tensors of all ranks [size, ...]."""
        out = x.new_empty(self.size * x.numel())
        dist.all_gather_into_tensor(out, x.contiguous().view(-1))
        return out.view(self.size, *x.shape)
