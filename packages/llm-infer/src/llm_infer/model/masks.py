"""What queries of a block must not see: the same for each block, counted from its last key."""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_infer.model.linear import TILE_ROWS

MOST_KEYS = 2048
"""How many `added` covers."""


def is_masked(block_tokens: int, window: int | None, queries: int) -> Tensor:
    """True where a query (row) of a block must not look: later keys, and those out of a window.

    Columns end with the block's last token; rows go on beyond the block, for filled-up tiles.
    """
    width = block_tokens
    if window is not None:
        width += -(-window // block_tokens) * block_tokens
    row = torch.arange(block_tokens + TILE_ROWS)[:, None]
    column = torch.arange(block_tokens - width, block_tokens)
    found = column > row
    if window is not None:
        found |= column <= row - window
    return found.repeat_interleave(queries, dim=0)


# The same in all layers of one kind, of which a model has few.
@lru_cache(maxsize=4)
def added(block_tokens: int, window: int | None, queries: int) -> Tensor:
    """Added to scores of the `MOST_KEYS` keys up to the end of a block: 0 or minus infinity."""
    found = is_masked(block_tokens, window, queries)[:, -MOST_KEYS:]
    mask = torch.zeros(len(found), MOST_KEYS)
    return mask.masked_fill_(F.pad(found, (MOST_KEYS - found.shape[1], 0)), -math.inf)
