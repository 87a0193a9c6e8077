"""Log-probabilities of rows of tokens with a transformers model, sharing what rows begin with.

B rows of a block, P shared tokens, S tokens after them, N predictions asked for, V vocabulary.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llm_eval.blocks import Tokens


@dataclass(frozen=True, slots=True)
class Ask:
    """Predictions wanted of a row: `targets` after its tokens `first`, `first + 1` and so on."""

    row: int
    first: int
    targets: Tokens


@dataclass(frozen=True, slots=True)
class Question:
    """A block: the tokens all rows share, each row's tokens after them, and what is asked.

    `Ask.first` counts from the beginning of the row's own tokens.
    """

    shared: Tokens
    rows: tuple[Tokens, ...]
    asks: tuple[Ask, ...]


class Reader:
    """Scores questions; keeps the keys and values of the last shared beginning."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._shared: Tokens = ()
        self._cache: Any = None

    @torch.inference_mode()
    def score(self, question: Question) -> list[tuple[float, bool]]:
        """Sum of log-probabilities of each ask's targets; whether each is the likeliest.

        One pass over B×S tokens; the vocabulary is only multiplied for the N predictions. Rows
        are padded on the right, where causal attention never looks.
        """
        places, targets, lengths = _flat(question)
        tokens_BS = self._padded(question.rows)
        cache = self._repeated(question.shared, len(question.rows))
        selected = torch.tensor(places, device=tokens_BS.device)
        with _only(self._model, selected):
            logits = self._model(
                input_ids=tokens_BS, past_key_values=cache, use_cache=cache is not None
            ).logits
        logits_NV = logits[0].float()
        wanted_N = torch.tensor(targets, device=logits_NV.device)
        # The chosen logit less the sum, instead of a second array of N×V log-probabilities.
        chosen_N = logits_NV.gather(1, wanted_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
        greedy_N = logits_NV.max(-1).indices == wanted_N
        return [
            (float(logprob.sum()), bool(greedy.all()))
            for logprob, greedy in zip(
                chosen_N.double().split(lengths), greedy_N.split(lengths), strict=True
            )
        ]

    def _padded(self, rows: Sequence[Tokens]) -> Tensor:
        width = max(map(len, rows))
        padded = [row + (0,) * (width - len(row)) for row in rows]
        return torch.tensor(padded, device=self._model.device)

    def _repeated(self, shared: Tokens, count: int) -> Any:
        """Keys and values of the shared tokens for each row, or None when nothing is shared."""
        if not shared:
            return None
        if shared != self._shared:
            self._cache = DynamicCache(config=self._model.config)
            tokens = torch.tensor([shared], device=self._model.device)
            with _only(self._model, torch.zeros(1, dtype=torch.long, device=tokens.device)):
                self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True)
            self._shared = shared
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(count)
        return cache


def can_share(model: PreTrainedModel) -> bool:
    """Whether keys and values alone carry what was read: no recurrent or compressed state."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]
    return all(kind in ("full_attention", "sliding_attention") for kind in kinds) and not getattr(
        model, "_is_stateful", False
    )


def _flat(question: Question) -> tuple[list[int], list[int], list[int]]:
    """Places of the predictions among B×S, their targets, and how many each ask has."""
    width = max(map(len, question.rows))
    places: list[int] = []
    targets: list[int] = []
    for ask in question.asks:
        start = ask.row * width + ask.first
        places += range(start, start + len(ask.targets))
        targets += ask.targets
    return places, targets, [len(ask.targets) for ask in question.asks]


@contextmanager
def _only(model: PreTrainedModel, places_N: Tensor) -> Iterator[None]:
    """Let the output layer see N of the B×S hidden states, as one row of N.

    Through a hook of the layer's own, so that whatever a family does to its logits afterwards
    (scaling, soft caps) is done to these too.
    """
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module), "a causal model has an output layer"

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BSH = inputs[0]
        return (hidden_BSH.flatten(0, 1).index_select(0, places_N)[None], *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
