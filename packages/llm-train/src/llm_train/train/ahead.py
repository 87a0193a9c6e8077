"""Micro-batches as prediction layers are given them: so many tokens further."""

from collections.abc import Mapping

import torch

Batch = dict[str, torch.Tensor]


def batches_ahead(rows: Mapping[str, torch.Tensor], depths: int) -> list[Batch]:
    """`rows` (tokens, labels, position_ids, loss_mask, [B, T] each) 1, 2, … `depths` tokens on.

    A token counts when the label that it then has counts and is of the same document: positions
    go on from here to there. What would lie behind the row is 0 and never counts.
    """
    return [_ahead(rows, depth) for depth in range(1, depths + 1)]


def _ahead(rows: Mapping[str, torch.Tensor], depth: int) -> Batch:
    moved = {key: _moved(value, depth) for key, value in rows.items()}
    goes_on = moved["position_ids"] == rows["position_ids"] + depth
    return {**moved, "loss_mask": moved["loss_mask"] * goes_on}


def _moved(x: torch.Tensor, depth: int) -> torch.Tensor:
    out = torch.zeros_like(x)
    out[:, :-depth] = x[:, depth:]
    return out
