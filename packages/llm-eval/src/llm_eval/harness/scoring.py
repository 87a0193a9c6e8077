"""Log-probabilities of rows of tokens with a transformers model, sharing what rows begin with.

B rows of a block, S tokens after the shared ones, N predictions asked for, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from llm_eval.blocks import Tokens
from llm_eval.harness.passes import Beginning, output_at, padded

# Log-probabilities that are made at a time: 16 MiB.
_SOFTMAX_NUMBERS = 1 << 22


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
        self._beginning = Beginning(model, lambda: DynamicCache(config=model.config))

    @torch.inference_mode()
    def score(self, question: Question) -> list[tuple[float, bool]]:
        """Sum of log-probabilities of each ask's targets; whether each is the likeliest.

        Summed in float32 as lm-eval's `hf` does: to have its scores, not float64's.

        One pass over B×S tokens; the vocabulary is only multiplied for the N predictions. Rows
        are padded on the right, where causal attention never looks.
        """
        places, targets, lengths = _flat(question)
        tokens_BS = padded(question.rows, self._model.device)
        cache = None
        if question.shared:
            cache = self._beginning.repeated(question.shared, len(question.rows))
        with output_at(self._model, places):
            logits = self._model(
                input_ids=tokens_BS, past_key_values=cache, use_cache=cache is not None
            ).logits
        logits_NV = logits[0].float()
        wanted_N = torch.tensor(targets, device=logits_NV.device)
        chosen_N = _logprobs(logits_NV, wanted_N)
        greedy_N = logits_NV.max(-1).indices == wanted_N
        return [
            (float(logprob.sum()), bool(greedy.all()))
            for logprob, greedy in zip(
                chosen_N.split(lengths), greedy_N.split(lengths), strict=True
            )
        ]


def _logprobs(logits_NV: Tensor, wanted_N: Tensor) -> Tensor:
    """[N] float32, to the bit what lm-eval's `hf` takes of a log_softmax of the same logits.

    Some rows at a time, so that no second array of N×V is held.
    """
    rows = max(1, _SOFTMAX_NUMBERS // logits_NV.shape[1])
    parts = zip(logits_NV.split(rows), wanted_N.split(rows), strict=True)
    return torch.cat(
        [part.log_softmax(-1).gather(1, wanted[:, None])[:, 0] for part, wanted in parts]
    )


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
