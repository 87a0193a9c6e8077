"""Answers to many prompts: together where the engine can, else one after the other."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import click

from llm_infer.edge.model_folder import Loaded
from llm_infer.edge.notes import note
from llm_infer.engine import BatchEngine, Event, SearchingEngine
from llm_infer.openai_api.answers import Piece, TokenText
from llm_infer.sampling import Sampling
from llm_infer.serving.assembler import Assembler
from llm_infer.serving.serial import batched
from llm_infer.stream import FinishReason

_LINE_EVERY_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished text."""

    text: str
    num_tokens: int
    finish_reason: FinishReason | None
    num_prompt_tokens: int | None = None
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    logprobs: tuple[TokenText, ...] = ()
    """Of its tokens, where they were asked for."""
    score: float | None = None
    """Of a text that a beam search found."""
    others: "tuple[Answer, ...]" = ()
    """More texts of the search, where more were asked for; this one is the best."""


class Advance(Protocol):
    """Says that so many more prompts are answered."""

    def __call__(self, count: int = 1) -> None:
        """See the class."""
        ...


def answers_of(
    loaded: Loaded, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[Answer]:
    """One answer a prompt, in order; prompt N draws with `seed + N`. Progress goes to stderr."""
    samplings = [replace(sampling, seed=sampling.seed + n) for n in range(len(prompts))]
    engine = batched(loaded.engine)
    with progress("prompts", len(prompts)) as advance:
        numbers = [_submit(engine, *both) for both in zip(prompts, samplings, strict=True)]
        texts = {
            number: _Text(Assembler(0, loaded.tokenizer.decode, sampling.stop))
            for of_prompt in numbers
            for number in of_prompt
        }
        _run(engine, texts, {of_prompt[-1] for of_prompt in numbers}, advance)
    return [_best([texts[number].answer() for number in of_prompt]) for of_prompt in numbers]


@dataclass(slots=True)
class _Text:
    """One text on its way."""

    assembler: Assembler
    start_s: float = field(default_factory=time.perf_counter)
    pieces: list[Piece] = field(default_factory=list[Piece])
    first_token_s: float | None = None
    last_token_s: float = 0.0

    def push(self, event: Event) -> bool:
        """Take what came; whether the text is over."""
        if event.token is not None:
            self.last_token_s = time.perf_counter() - self.start_s
            if self.first_token_s is None:
                self.first_token_s = self.last_token_s
            self.pieces.append(self.assembler.push(event.token, event))
        if event.end is not None and not self.assembler.is_stopped:
            self.pieces.append(self.assembler.finish(event.end, event))
        return event.end is not None or self.assembler.is_stopped

    def answer(self) -> Answer:
        num_tokens, first_s = self.assembler.num_tokens, self.first_token_s
        score = next((one.score for one in self.pieces if one.score is not None), None)
        rate = None
        if first_s is not None and num_tokens > 1:
            # All tokens of a search come at its end.
            elapsed_s = self.last_token_s - (0.0 if score is not None else first_s)
            counted = num_tokens - (score is None)
            rate = counted / elapsed_s if elapsed_s > 0 else None
        return Answer(
            text="".join(piece.text for piece in self.pieces),
            num_tokens=num_tokens,
            # Without calls of tools an answer ends for no other reasons.
            finish_reason=cast("FinishReason | None", self.pieces[-1].finish),
            first_token_s=first_s,
            tokens_per_s=rate,
            logprobs=tuple(token for piece in self.pieces for token in piece.tokens),
            score=score,
        )


def _submit(engine: BatchEngine, prompt: Sequence[int], sampling: Sampling) -> Sequence[int]:
    """Numbers of the texts that one prompt gets."""
    if sampling.beams is not None and isinstance(engine, SearchingEngine):
        return engine.submit_search(prompt, sampling)
    return [engine.submit(prompt, sampling)]


def _run(engine: BatchEngine, texts: dict[int, _Text], counted: set[int], advance: Advance) -> None:
    """Compute until all texts are over; each of those `counted` is progress."""
    is_over = set[int]()
    while engine.has_work:
        for event in engine.step():
            if event.failure is not None:
                raise event.failure
            if event.request not in is_over and texts[event.request].push(event):
                is_over.add(event.request)
                engine.cancel(event.request)
                if event.request in counted:
                    advance()


def _best(answers: Sequence[Answer]) -> Answer:
    return replace(answers[0], others=tuple(answers[1:]))


@contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """A bar on a terminal, else a line every now and then."""
    if sys.stderr.isatty():
        with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
            yield lambda count=1: bar.update(count)
        return
    done, last_s = 0, time.monotonic()

    def advance(count: int = 1) -> None:
        nonlocal done, last_s
        done += count
        if time.monotonic() - last_s >= _LINE_EVERY_S:
            last_s = time.monotonic()
            note(f"{label}: {done}/{total}")

    yield advance
