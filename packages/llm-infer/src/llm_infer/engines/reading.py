"""Log-probabilities of given tokens on the native decoder, through a cache of shared beginnings.

R rows whose logits are wanted, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llm_infer.blocks import BlockManager
from llm_infer.engines.native import Limits
from llm_infer.engines.rope_variants import LONG, variant_of
from llm_infer.model.runner import Model
from llm_infer.model.steps import Part
from llm_infer.scheduler import Scheduler, Work
from llm_infer.scheduler import Sequence as Text
from llm_infer.scoring import Reading, Score, Tokens


@dataclass(slots=True)
class _Member:
    """One reading of a text, and what is known of its score."""

    reading: Reading
    logprobs: list[float] = field(default_factory=list[float])
    is_greedy: bool = True

    def score(self) -> Score:
        """Added up in float32, as lm-eval's `hf` does: to have its scores, not float64's."""
        return Score(float(torch.tensor(self.logprobs).sum()), self.is_greedy)


@dataclass(slots=True)
class _Asked:
    """A text and all who read just this one: the one-token choices of a question."""

    text: Text
    members: list[_Member] = field(default_factory=list[_Member])

    @property
    def first(self) -> int:
        return min(member.reading.first for member in self.members)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A prediction: the row of the step's wanted rows, the token, whose it is."""

    row: int
    token: int
    member: _Member


class Reader:
    """Scores readings. What texts begin with is computed once, also across calls.

    In float32 on a CPU a score does not depend on what else is scored (see `attend`).
    """

    def __init__(self, model: Model, *, limits: Limits) -> None:
        size = limits.block_tokens
        self._model = model
        self._blocks = BlockManager(max(1, limits.cache_tokens // size), block_tokens=size)
        self._scheduler = Scheduler(
            self._blocks, step_tokens=limits.step_tokens, max_running=limits.max_running
        )
        self._runner = model.runner(num_blocks=self._blocks.num_blocks, block_tokens=size)
        self.num_computed = 0
        """Tokens that went through the decoder since the start."""

    def score(self, readings: Sequence[Reading]) -> list[Score]:
        """A score for each, in order.

        Raises ValueError for a token outside the vocabulary or a text that the cache cannot hold.
        """
        members = [_Member(reading) for reading in readings]
        asked: dict[Tokens, _Asked] = {}
        for number, member in enumerate(members):
            self._check(member.reading)
            tokens = member.reading.tokens
            if tokens not in asked:
                asked[tokens] = _Asked(self._text(number, tokens))
            asked[tokens].members.append(member)
        by_id = {one.text.id: one for one in asked.values()}
        for one in asked.values():
            one.text.first_wanted = one.first
            self._scheduler.add(one.text)
        try:
            while works := self._scheduler.schedule():
                self._step(works, by_id)
        finally:
            for one in asked.values():
                self._scheduler.remove(one.text)
        return [member.score() for member in members]

    def _step(self, works: Sequence[Work], by_id: dict[int, _Asked]) -> None:
        rows, wanted = list[int](), list[_Wanted]()
        start_row = 0
        for work in works:
            one = by_id[work.sequence.id]
            first = max(work.start, one.first)
            wanted += _wanted(one, work, first_row=len(rows))
            rows += range(start_row + first - work.start, start_row + work.stop - work.start)
            start_row += work.stop - work.start
        logits_RV = self._compute(works, rows)
        self.num_computed += start_row
        self._scheduler.advance(works)
        if wanted:
            _note(logits_RV, wanted)
        for work in works:
            if work.is_last:
                self._scheduler.remove(work.sequence)

    def _compute(self, works: Sequence[Work], rows: Sequence[int]) -> Tensor:
        """Logits [R, V] after the step's tokens `rows`."""
        parts = [
            Part(
                tokens=work.sequence.tokens[work.start : work.stop],
                first=work.start,
                blocks=work.sequence.blocks,
                wants_logits=False,
                is_long=work.sequence.variant == LONG,
                num_prompt=work.sequence.num_prompt,
            )
            for work in works
        ]
        return self._runner.run(parts, rows=rows)

    def _text(self, number: int, tokens: Tokens) -> Text:
        variant = variant_of(self._model, len(tokens))
        return Text(id=number, tokens=list(tokens), num_prompt=len(tokens), variant=variant)

    def _check(self, reading: Reading) -> None:
        vocabulary, room = self._model.arch.vocab_size, self._scheduler.capacity_tokens
        for token in (*reading.tokens, *reading.targets):
            if not 0 <= token < vocabulary:
                raise ValueError(f"token {token}: want 0 <= token < {vocabulary} (the vocabulary)")
        if len(reading.tokens) >= room:
            raise ValueError(f"{len(reading.tokens)} tokens to read; the cache holds {room - 1}")


def _wanted(one: _Asked, work: Work, *, first_row: int) -> Iterator[_Wanted]:
    """The predictions that a part of a text makes; its own rows begin at `first_row`."""
    first = max(work.start, one.first)
    for member in one.members:
        reading = member.reading
        for position in range(max(first, reading.first), work.stop):
            token = reading.targets[position - reading.first]
            yield _Wanted(first_row + position - first, token, member)


def _note(logits_RV: Tensor, wanted: Sequence[_Wanted]) -> None:
    """Add what a step predicted to the scores."""
    rows = torch.tensor([one.row for one in wanted], device=logits_RV.device)
    tokens = torch.tensor([one.token for one in wanted], device=logits_RV.device)
    logprobs = logits_RV.log_softmax(-1)[rows, tokens]
    is_best = logits_RV.argmax(-1)[rows] == tokens
    for one, logprob, is_greedy in zip(wanted, logprobs.tolist(), is_best.tolist(), strict=True):
        one.member.logprobs.append(logprob)
        one.member.is_greedy &= is_greedy
