"""Answers to many prompts: together where the engine can, else one after the other."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import click

from llm_infer.edge.model_folder import Loaded
from llm_infer.engine import BatchEngine, EndReason
from llm_infer.sampling import Sampling
from llm_infer.stream import FinishReason, TextBuilder, TextStream

_LINE_EVERY_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished text."""

    text: str
    num_tokens: int
    finish_reason: FinishReason | None
    num_prompt_tokens: int | None = None


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
    with progress("prompts", len(prompts)) as advance:
        if isinstance(loaded.engine, BatchEngine) and sampling.beams is None:
            return _together(loaded, loaded.engine, prompts, samplings, advance)
        return [
            _alone(loaded, prompt, one, advance)
            for prompt, one in zip(prompts, samplings, strict=True)
        ]


def _together(
    loaded: Loaded,
    engine: BatchEngine,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    advance: Advance,
) -> list[Answer]:
    numbers = [engine.submit(*both) for both in zip(prompts, samplings, strict=True)]
    decode = loaded.tokenizer.decode
    texts = {
        number: TextBuilder(decode, sampling.stop)
        for number, sampling in zip(numbers, samplings, strict=True)
    }
    ends: dict[int, EndReason] = {}
    while engine.has_work:
        for event in engine.step():
            if event.token is not None:
                texts[event.request].push(event.token)
            if event.end is not None:
                ends[event.request] = event.end
            if texts[event.request].is_stopped:
                engine.cancel(event.request)
            if event.end is not None or texts[event.request].is_stopped:
                advance()
    return [_answer(texts[number], ends.get(number)) for number in numbers]


def _answer(text: TextBuilder, end: EndReason | None) -> Answer:
    text.finish()
    reason = "stop" if text.is_stopped else end
    return Answer(text=text.text, num_tokens=text.num_tokens, finish_reason=reason)


def _alone(loaded: Loaded, prompt: Sequence[int], sampling: Sampling, advance: Advance) -> Answer:
    stream = TextStream(
        loaded.engine.generate(prompt, sampling),
        loaded.tokenizer.decode,
        sampling,
        room=loaded.engine.context_length - len(prompt),
        clock=time.perf_counter,
    )
    text = "".join(stream)
    advance()
    return Answer(text=text, num_tokens=stream.num_tokens, finish_reason=stream.finish_reason)


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
            click.echo(f"{label}: {done}/{total}", err=True)

    yield advance
