"""What the tensor-parallel ranks of a linear exchange, while their caller computes."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from llm_train.model.lora.adapter import Place


@dataclass(frozen=True, slots=True)
class Pending:
    """A tensor that is on its way; `source` must live until it has come."""

    result: torch.Tensor
    work: dist.Work | None = None
    source: torch.Tensor | None = None

    def wait(self) -> torch.Tensor:
        """The tensor, whole."""
        if self.work is not None:
            self.work.wait()
        return self.result


class Exchange:
    """The two collectives of a linear that is cut over ranks, each started and not waited for."""

    def __init__(self, place: Place) -> None:
        self._group = place.group
        self.ranks = place.group.size()
        self.is_sliced = place.is_sequence_parallel and self.ranks > 1

    def gather(self, x: torch.Tensor) -> Pending:
        """Each rank's slice [t, N] → [T, N]; without sequence parallel x is whole already."""
        if not self.is_sliced:
            return Pending(x)
        x = x.contiguous()
        result = x.new_empty(x.shape[0] * self.ranks, *x.shape[1:])
        work = dist.all_gather_into_tensor(result, x, group=self._group, async_op=True)
        return Pending(result, work, x)

    def sum(self, x: torch.Tensor) -> Pending:
        """The sum over ranks of x [T, N]: this rank's slice [t, N], or all, in the memory of x."""
        if self.ranks == 1:
            return Pending(x)
        x = x.contiguous()
        if not self.is_sliced:
            return Pending(x, dist.all_reduce(x, group=self._group, async_op=True))
        result = x.new_empty(x.shape[0] // self.ranks, *x.shape[1:])
        work = dist.reduce_scatter_tensor(result, x, group=self._group, async_op=True)
        return Pending(result, work, x)
