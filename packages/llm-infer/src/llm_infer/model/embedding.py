"""Rows of the vocabulary's table, each rank having a run of them."""

from torch import Tensor
from torch.nn import functional as F

from llm_infer.model.group import Group


class Embedding:
    """[T, H] of tokens [T]."""

    def __init__(self, rows_VH: Tensor, group: Group) -> None:
        """`rows_VH` are this rank's: as many on each, in the order of the ranks."""
        self._rows_VH, self._group = rows_VH, group

    def __call__(self, tokens_T: Tensor) -> Tensor:
        """A token's row comes from the rank that has it; the others add zeros."""
        if self._group.size == 1:
            return F.embedding(tokens_T, self._rows_VH)
        count = len(self._rows_VH)
        own_T = tokens_T - self._group.rank * count
        is_elsewhere_T = (own_T < 0) | (own_T >= count)
        x_TH = F.embedding(own_T.clamp(0, count - 1), self._rows_VH)
        return self._group.summed(x_TH.masked_fill(is_elsewhere_T[:, None], 0.0))
