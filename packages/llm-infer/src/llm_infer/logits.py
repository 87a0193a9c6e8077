"""From logits to the next token: penalties, the cuts of the distribution, and the draw.

Order and formulas are those of transformers' logits processors, and of OpenAI's API for presence
and frequency penalties; so is the draw, which takes the same numbers from an equal generator.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_infer.errors import BrokenModelError
from llm_infer.sampling import Sampling

_COLD, _COLDEST = 1e-3, 1e-30


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token; with `Sampling.logprobs` its natural-log probability and the likeliest tokens'.

    Probabilities are the model's own, before temperature, penalties and cuts.
    """

    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


def choose(
    logits_V: Tensor,
    sampling: Sampling,
    *,
    prompt: Sequence[int],
    answer: Sequence[int],
    generator: torch.Generator,
) -> Chosen:
    """The next token after `prompt` and `answer`, from float32 logits [V].

    Raises ValueError for a logit bias of a token that does not exist.
    """
    scores_V = logits_V
    if sampling.has_penalties:
        scores_V = penalized(logits_V, sampling, prompt=prompt, answer=answer)
    if sampling.is_greedy:
        token = int(scores_V.argmax())
    else:
        weights_V = cut(tempered(scores_V, sampling.temperature), sampling).softmax(-1)
        token = int(torch.multinomial(weights_V, 1, generator=generator))
    return described(logits_V, token, sampling.logprobs)


def require_numbers(logits_RV: Tensor, *, after: int) -> None:
    """Raise BrokenModelError unless each row has a likeliest token; see `broken`."""
    # The largest is NaN where any is.
    for value in logits_RV.amax(-1).cpu():
        most = float(value)
        if not math.isfinite(most):
            raise broken(most, after=after)


def broken(most: float, *, after: int) -> BrokenModelError:
    """What is wrong with logits whose largest is no number, `after` so many tokens of an answer."""
    if most == -math.inf:
        return BrokenModelError(f"after {after} tokens of the answer no token can come")
    return BrokenModelError(
        f"after {after} tokens of the answer the model's logits are not finite (found {most}): "
        "its weights are broken, or its numbers too large for their type"
    )


def penalized(
    logits_V: Tensor, sampling: Sampling, *, prompt: Sequence[int], answer: Sequence[int]
) -> Tensor:
    """New logits with penalties and biases."""
    scores_V = logits_V.clone()
    if sampling.repetition_penalty != 1.0:
        seen = _indices({*prompt, *answer}, scores_V)
        found, by = scores_V[seen], sampling.repetition_penalty
        scores_V[seen] = torch.where(found < 0, found * by, found / by)
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = Counter(answer)
        times = scores_V.new_tensor(list(counts.values()))
        per_token = sampling.presence_penalty + sampling.frequency_penalty * times
        scores_V[_indices(counts, scores_V)] -= per_token
    for token, bias in sampling.logit_bias:
        if token >= scores_V.shape[0]:
            raise ValueError(f"logit_bias: token {token}, want below {scores_V.shape[0]}")
        scores_V[token] += bias
    return scores_V


def tempered(scores_V: Tensor, temperature: float) -> Tensor:
    """Scores divided by a temperature above 0; near 0 the likeliest token is all that is left."""
    if temperature >= _COLD:
        return scores_V / temperature
    # Else the quotients are infinite, or have no difference left.
    return (scores_V - scores_V.max()) / max(temperature, _COLDEST)


def cut(scores_V: Tensor, sampling: Sampling, *, least: int = 1) -> Tensor:
    """Scores with minus infinity where top-k, top-p or min-p leave a token out.

    The `least` likeliest stay in any case.
    """
    count = max(sampling.top_k, least)
    if sampling.top_k and count < scores_V.shape[0]:
        lowest = scores_V.topk(count).values[-1]
        scores_V = scores_V.masked_fill(scores_V < lowest, float("-inf"))
    if sampling.top_p < 1.0:
        ascending, order = scores_V.sort()
        is_left_out = ascending.softmax(-1).cumsum(-1) <= 1.0 - sampling.top_p
        is_left_out[-least:] = False
        is_left_out = torch.zeros_like(is_left_out).scatter(0, order, is_left_out)
        scores_V = scores_V.masked_fill(is_left_out, float("-inf"))
    if sampling.min_p > 0.0:
        weights = scores_V.softmax(-1)
        is_left_out = weights < sampling.min_p * weights.max()
        is_left_out[weights.topk(least).indices] = False
        scores_V = scores_V.masked_fill(is_left_out, float("-inf"))
    return scores_V


def described(logits_V: Tensor, token: int, num_top: int | None) -> Chosen:
    """A token with the log-probabilities that were asked for; tokens that cannot come have none."""
    if num_top is None:
        return Chosen(token)
    logprobs_V = logits_V.log_softmax(-1)
    best = logprobs_V.topk(num_top)
    tokens = [int(index) for index in best.indices]
    values = [float(value) for value in best.values]
    pairs = zip(tokens, values, strict=True)
    possible = tuple(pair for pair in pairs if pair[1] > -math.inf)
    return Chosen(token, float(logprobs_V[token]), possible)


def _indices(tokens: "set[int] | Counter[int]", like: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.long, device=like.device)
