"""Beam search over scores: which texts go on, which have ended, when nothing better can come.

Scores and order are those of transformers' `generate(num_beams=…)`, in float32 as there, so that
equal logits and an equal generator give equal tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_infer.logits import Chosen, cut, described, penalized
from llm_infer.sampling import Sampling

# B beams, V vocabulary, K candidates of a step
_NEVER_TAKEN = -1e9
"""Worse than any text's log-probability, and still a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A text that a search ends with."""

    tokens: Sequence[Chosen]
    """Without an end token; with the model's own log-probabilities where they were asked for."""
    score: float
    """Its log-probability, penalties and drawing included, over its length to a power."""
    is_ended: bool
    """Whether an end token ended it, and not the limit."""


@dataclass(frozen=True, slots=True)
class _Finished:
    score: float
    answer: list[Chosen]


class BeamSearch:
    """One request's beams. Give `push` the logits of their next tokens until `is_done`.

    `answers` are the texts that go on, likeliest first; all have the same length.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        end_tokens: Sequence[int],
        max_new_tokens: int,
        generator: torch.Generator,
    ) -> None:
        """`max_new_tokens` stands in for the sampling's. ValueError without `sampling.beams`."""
        if sampling.beams is None:
            raise ValueError("sampling.beams: found None, want the number of beams")
        self.answers: list[list[int]] = [[] for _ in range(sampling.beams.num_beams)]
        self._chosen: list[list[Chosen]] = [[] for _ in self.answers]
        self.is_done = False
        self._prompt, self._sampling, self._beams = prompt, sampling, sampling.beams
        self._end_tokens = frozenset(() if sampling.ignores_end else end_tokens)
        self.max_new_tokens, self._generator = max_new_tokens, generator
        # All begin as the same text: only the first may be continued, or all would stay the same.
        self._totals_B = torch.full((len(self.answers),), _NEVER_TAKEN, device=generator.device)
        self._totals_B[0] = 0.0
        self._finished: list[_Finished] = []

    @property
    def found(self) -> list[Found]:
        """As many texts as were asked for, best first, once `is_done`."""
        return [self._told(one) for one in self._finished[: self._beams.num_texts]]

    def push(self, logits_BV: Tensor) -> list[int]:
        """Choose from float32 logits, one row a beam or a single one at first.

        Returns which of the earlier `answers` each of the new ones continues.
        """
        num_beams = len(self.answers)
        num_rows, vocabulary = logits_BV.shape
        totals_BV = self._scores(logits_BV).expand(num_beams, -1) + self._totals_B[:, None]
        totals_K, places_K = self._candidates(totals_BV.flatten())
        parents = _integers(places_K // vocabulary)
        tokens = _integers(places_K % vocabulary)
        # All have a single row at first.
        answers = [
            [*self._chosen[parent], self._described(logits_BV[min(parent, num_rows - 1)], token)]
            for parent, token in zip(parents, tokens, strict=True)
        ]
        is_last = len(answers[0]) >= self.max_new_tokens
        is_over = [is_last or token in self._end_tokens for token in tokens]
        # Candidates behind the first ones are only there to go on in place of those that end.
        self._finish(answers[:num_beams], is_over[:num_beams], totals_K[:num_beams])
        totals_K = totals_K + _NEVER_TAKEN * torch.tensor(is_over, device=totals_K.device)
        self._totals_B, order = totals_K.topk(num_beams)
        chosen = _integers(order)
        self._chosen = [answers[index] for index in chosen]
        self.answers = [[one.token for one in answer] for answer in self._chosen]
        self.is_done = is_last or self._is_decided()
        return [parents[index] for index in chosen]

    def _described(self, logits_V: Tensor, token: int) -> Chosen:
        return described(logits_V, token, self._sampling.logprobs)

    def _told(self, one: _Finished) -> Found:
        is_ended = one.answer[-1].token in self._end_tokens
        tokens = one.answer[:-1] if is_ended else one.answer
        return Found(tokens=tokens, score=one.score, is_ended=is_ended)

    def _scores(self, logits_BV: Tensor) -> Tensor:
        """Log-probabilities with penalties and, when tokens are drawn, temperature and cuts."""
        sampling, rows = self._sampling, list(logits_BV.log_softmax(-1))
        if sampling.has_penalties:
            # A single row at first: the first answer is then as empty as all others.
            rows = [
                penalized(row, sampling, prompt=self._prompt, answer=answer)
                for row, answer in zip(rows, self.answers, strict=False)
            ]
        if not sampling.is_greedy:
            least = 1 + max(1, len(self._end_tokens))
            rows = [cut(row / sampling.temperature, sampling, least=least) for row in rows]
        return torch.stack(rows)

    def _candidates(self, totals: Tensor) -> tuple[Tensor, Tensor]:
        """Totals and places of so many that, whatever ends, as many as there are beams go on."""
        count = len(self.answers) * (1 + max(1, len(self._end_tokens)))
        if self._sampling.is_greedy:
            best = totals.topk(count)
            return best.values, best.indices
        places = torch.multinomial(totals.softmax(-1), count, generator=self._generator)
        return totals[places], places

    def _finish(self, answers: list[list[Chosen]], is_over: list[bool], totals: Tensor) -> None:
        scores = [float(score) for score in self._per_length(totals, len(answers[0])).cpu()]
        new = zip(scores, answers, is_over, strict=True)
        self._finished += [_Finished(score, answer) for score, answer, ends in new if ends]
        self._finished.sort(key=lambda one: -one.score)
        del self._finished[len(self.answers) :]

    def _is_decided(self) -> bool:
        """Whether no running text is expected to beat the worst of a full set of ended ones."""
        if len(self._finished) < len(self.answers):
            return False
        if self._beams.early_stopping == "true":
            return True
        is_bound = self._beams.early_stopping == "never" and self._beams.length_penalty > 0.0
        length = self.max_new_tokens if is_bound else len(self.answers[0])
        return float(self._per_length(self._totals_B[0], length)) <= self._finished[-1].score

    def _per_length(self, totals: Tensor, length: int) -> Tensor:
        return totals / length**self._beams.length_penalty


def _integers(values: Tensor) -> list[int]:
    return [int(value) for value in values.cpu()]
