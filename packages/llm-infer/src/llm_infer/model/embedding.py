"""Rows of the vocabulary's table, each rank having a run of them."""

from torch import Tensor

from llm_infer.model.group import Group
from llm_infer.model.stored import Table


class Embedding:
    """[T, H] of tokens [T]."""

    def __init__(self, rows: Table, group: Group) -> None:
        """`rows` are this rank's: as many on each, in the order of the ranks."""
        self._rows, self._group = rows, group

    def __call__(self, tokens_T: Tensor) -> Tensor:
        """A token's row comes from the rank that has it; the others add zeros."""
        if self._group.size == 1:
            return self._rows(tokens_T)
        count = len(self._rows)
        own_T = tokens_T - self._group.rank * count
        is_elsewhere_T = (own_T < 0) | (own_T >= count)
        x_TH = self._rows(own_T.clamp(0, count - 1))
        return self._group.summed(x_TH.masked_fill(is_elsewhere_T[:, None], 0.0))
