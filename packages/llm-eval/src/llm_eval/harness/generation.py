"""Greedy continuations of a batch of prompts; rows that have ended leave the batch.

B rows still going, T tokens of the longest prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from llm_eval.blocks import Tokens

# Options of a model's generation_config that change greedy decoding; with any of them set the
# harness' own generate is used.
_CHANGES_GREEDY = (
    *("repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id"),
    *("forced_eos_token_id", "sequence_bias", "min_new_tokens", "min_length", "num_beams"),
    *("exponential_decay_length_penalty", "guidance_scale", "watermarking_config", "penalty_alpha"),
)
_NEUTRAL = (None, 0, 1, 1.0, [], {}, False)


@dataclass(slots=True)
class _Row:
    limit: int
    tokens: list[int] = field(default_factory=list)
    is_done: bool = False


def is_plain(model: PreTrainedModel) -> bool:
    """Whether greedy decoding of this model is the largest logit and nothing else."""
    config = model.generation_config
    return config is None or all(
        getattr(config, name, None) in _NEUTRAL for name in _CHANGES_GREEDY
    )


@torch.inference_mode()
def continue_greedily(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[Tokens],
    *,
    stops: Sequence[str],
    limits: Sequence[int],
) -> list[list[int]]:
    """New tokens of each prompt: up to an end token, a stop string, or its limit.

    The same tokens as transformers' generate over left-padded prompts, which the last step may
    exceed by what completes the stop string.
    """
    ends = _end_tokens(model)
    window = 4 + max((len(tokenizer.encode(s, add_special_tokens=False)) for s in stops), default=0)
    rows = going = [_Row(limit) for limit in limits]
    tokens_BT, mask_BT = _left_padded(prompts, model.device)
    cache: Any = DynamicCache(config=model.config)
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    while True:
        logits = model(
            input_ids=tokens_BT, attention_mask=mask_BT, position_ids=positions_BT,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        ).logits  # fmt: skip
        next_B = logits[:, -1].argmax(-1)
        for row, token in zip(going, next_B.tolist(), strict=True):
            row.tokens.append(token)
            row.is_done = token in ends or len(row.tokens) >= row.limit
        _mark_stopped(going, tokenizer, stops, window)
        kept = [number for number, row in enumerate(going) if not row.is_done]
        if not kept:
            return [row.tokens for row in rows]
        positions_B1 = positions_BT[:, -1:] + 1
        if len(kept) < len(going):
            index = torch.tensor(kept, device=next_B.device)
            cache.batch_select_indices(index)
            next_B, mask_BT, positions_B1 = next_B[index], mask_BT[index], positions_B1[index]
            going = [going[number] for number in kept]
        tokens_BT, positions_BT = next_B[:, None], positions_B1
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(going), 1)], dim=1)


def _mark_stopped(going: Sequence[_Row], tokenizer: Any, stops: Sequence[str], window: int) -> None:
    if not stops:
        return
    tails = tokenizer.batch_decode([row.tokens[-window:] for row in going])
    for row, tail in zip(going, tails, strict=True):
        row.is_done = row.is_done or any(stop in tail for stop in stops)


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    found = getattr(model.generation_config, "eos_token_id", None)
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def _left_padded(prompts: Sequence[Tokens], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    tokens = [(0,) * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)
