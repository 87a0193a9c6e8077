"""Greedy continuations of many prompts: rows that have ended make room for prompts that wait.

B rows still going.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from llm_eval.blocks import Prompt, reading_passes
from llm_eval.harness.packed import packed
from llm_eval.harness.passes import Beginning, output_at, padded
from llm_eval.harness.scoring import can_share
from llm_eval.harness.slots import Slots

# Options of a model's generation_config that change greedy decoding; with any of them set the
# harness' own generate is used.
_CHANGES_GREEDY = (
    *("repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id"),
    *("forced_eos_token_id", "sequence_bias", "min_new_tokens", "min_length", "num_beams"),
    *("exponential_decay_length_penalty", "guidance_scale", "watermarking_config", "penalty_alpha"),
)
_NEUTRAL = (None, 0, 1, 1.0, [], {}, False)

# Rows continued together: at most so many, and at most so many tokens at their longest.
_MAX_ROWS = 32
_MAX_CACHED_TOKENS = 32768
# Prompts are read when so large a part of the rows is free: a pass for each would be slow.
_REFILL = 0.25


@dataclass(slots=True)
class _Row:
    limit: int
    tokens: list[int] = field(default_factory=list)
    is_done: bool = False


class Continuer:
    """Continues prompts with a transformers model whose cache is keys and values alone."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, *, max_rows: int = _MAX_ROWS
    ) -> None:
        self._model = model
        self._max_rows = max_rows
        self._tokenizer = tokenizer
        self._ends = _end_tokens(model)
        self._takes_positions = "position_ids" in signature(model.forward).parameters
        # Without the config: layers of a sliding window keep all they have read, and the mask
        # hides what is too far away. So rows can be moved whole.
        self._beginning = Beginning(model, DynamicCache)

    @torch.inference_mode()
    def continue_greedily(
        self, prompts: Sequence[Prompt], *, stops: Sequence[str]
    ) -> list[list[int]]:
        """New tokens of each prompt: up to an end token, a stop string, or its limit.

        The tokens of transformers' generate for each prompt, which the last step may exceed by
        what completes the stop string.
        """
        with packed(self._model):
            return self._continue(prompts, stops)

    def _continue(self, prompts: Sequence[Prompt], stops: Sequence[str]) -> list[list[int]]:
        rows = [_Row(prompt.limit) for prompt in prompts]
        longest = max(len(prompt.tokens) + prompt.limit for prompt in prompts)
        places = max(1, min(self._max_rows, len(prompts), _MAX_CACHED_TOKENS // longest))
        slots = Slots(
            places, longest=longest, longest_prompt=max(len(prompt.tokens) for prompt in prompts)
        )
        stop = _Stop(self._tokenizer, stops)
        going: list[_Row] = []
        entered = 0
        while entered < len(rows) or going:
            free, left = places - len(going), len(rows) - entered
            if left and (free >= min(left, _REFILL * places) or not going):
                part = range(entered, entered + min(free, left))
                entered = part.stop
                for numbers in reading_passes([prompts[n] for n in part]):
                    chosen = [part[n] for n in numbers]
                    first_B = self._read([prompts[n] for n in chosen], slots)
                    self._take([rows[n] for n in chosen], first_B, stop)
                    going += [rows[n] for n in chosen]
            else:
                self._take(going, self._step(going, slots), stop)
            _drop_ended(going, slots)
        return [row.tokens for row in rows]

    def _read(self, prompts: Sequence[Prompt], slots: Slots) -> list[int]:
        """One pass over prompts of one shared beginning; the first new token of each."""
        shared = prompts[0].shared
        rest = [prompt.tokens[shared:] for prompt in prompts]
        cache = self._beginning.repeated(prompts[0].tokens[:shared], len(prompts))
        tokens_BS = padded(rest, self._model.device)
        width = tokens_BS.shape[1]
        with output_at(self._model, [row * width + len(own) - 1 for row, own in enumerate(rest)]):
            logits = self._model(input_ids=tokens_BS, past_key_values=cache, use_cache=True).logits
        slots.admit(cache, [len(prompt.tokens) for prompt in prompts])
        return logits[0].argmax(-1).tolist()

    def _step(self, going: Sequence[_Row], slots: Slots) -> list[int]:
        """One more token of every row."""
        device = self._model.device
        inputs = slots.inputs(device)
        if not self._takes_positions:
            del inputs["position_ids"]
        tokens_B1 = torch.tensor([row.tokens[-1:] for row in going], device=device)
        logits = self._model(
            input_ids=tokens_B1, past_key_values=slots, use_cache=True, **inputs
        ).logits
        slots.advance()
        return logits[:, -1].argmax(-1).tolist()

    def _take(self, going: Sequence[_Row], next_B: Sequence[int], stop: "_Stop") -> None:
        for row, token in zip(going, next_B, strict=True):
            row.tokens.append(token)
            row.is_done = token in self._ends or len(row.tokens) >= row.limit
        stop.mark([row for row in going if not row.is_done])


class _Stop:
    """Looks for stop strings in what rows end with."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        lengths = [len(tokenizer.encode(stop, add_special_tokens=False)) for stop in stops]
        self._window = 4 + max(lengths, default=0)

    def mark(self, rows: Sequence[_Row]) -> None:
        """Set `is_done` of rows that a stop string has ended."""
        if not self._stops or not rows:
            return
        tails = self._tokenizer.batch_decode([row.tokens[-self._window :] for row in rows])
        for row, tail in zip(rows, tails, strict=True):
            row.is_done = any(stop in tail for stop in self._stops)


def can_continue(model: PreTrainedModel) -> bool:
    """Whether greedy decoding of this model is the largest logit and nothing else, and its state
    keys and values of its own layers.
    """
    config = model.generation_config
    is_plain = config is None or all(
        getattr(config, name, None) in _NEUTRAL for name in _CHANGES_GREEDY
    )
    borrows = getattr(model.config.get_text_config(), "num_kv_shared_layers", None)
    return is_plain and can_share(model) and not borrows


def _drop_ended(going: list[_Row], slots: Slots) -> None:
    """As the slots do it: the last row takes the place of one that leaves."""
    for place in reversed(range(len(going))):
        if going[place].is_done:
            slots.drop(place)
            going[place] = going[-1]
            going.pop()


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    found = getattr(model.generation_config, "eos_token_id", None)
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])
