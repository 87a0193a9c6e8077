"""Parts of a pass of a transformers model: a shared beginning read once, the output layer at
chosen places alone.

P shared tokens, B rows, S tokens of a row after the shared ones, N places, H hidden size.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_eval.blocks import Tokens


class Beginning:
    """Keys and values of the last shared beginning; `empty` makes a cache to read it into."""

    def __init__(self, model: PreTrainedModel, empty: Callable[[], Any]) -> None:
        self._model = model
        self._empty = empty
        self._tokens: Tokens = ()
        self._cache: Any = None

    def repeated(self, shared: Tokens, count: int) -> Any:
        """A cache of its own that holds the shared tokens for each of `count` rows."""
        if not shared:
            return self._empty()
        if shared != self._tokens:
            self._cache = self._empty()
            tokens_1P = torch.tensor([shared], device=self._model.device)
            with output_at(self._model, [0]):
                self._model(input_ids=tokens_1P, past_key_values=self._cache, use_cache=True)
            self._tokens = shared
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(count)
        return cache


def padded(rows: Sequence[Tokens], device: torch.device) -> Tensor:
    """B×S tokens, padded on the right, where causal attention never looks."""
    width = max(map(len, rows))
    return torch.tensor([row + (0,) * (width - len(row)) for row in rows], device=device)


@contextmanager
def output_at(model: PreTrainedModel, places: Sequence[int]) -> Iterator[None]:
    """Let the output layer see N of the B×S hidden states, as one row of N.

    Through a hook of the layer's own, so that whatever a family does to its logits afterwards
    (scaling, soft caps) is done to these too.
    """
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module), "a causal model has an output layer"
    places_N = torch.tensor(places, device=model.device)

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BSH = inputs[0]
        return (hidden_BSH.flatten(0, 1).index_select(0, places_N)[None], *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
