"""The native engine: requests through the scheduler, the decoder and the draw, a step at a time."""

import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_infer.beam import BeamSearch
from llm_infer.blocks import BlockManager
from llm_infer.engine import EndReason, Event
from llm_infer.engines.beam_texts import (
    continued,
    events_of,
    make_room,
    require_one_table,
)
from llm_infer.engines.rope_variants import LONG, is_long, variant_of
from llm_infer.engines.unfinished import EngineRequest, EngineState, next_token
from llm_infer.errors import BrokenModelError, InferError
from llm_infer.logits import Chosen, broken, require_numbers
from llm_infer.model.runner import Model
from llm_infer.model.steps import Part
from llm_infer.sampling import Sampling
from llm_infer.scheduler import Scheduler, Work
from llm_infer.scheduler import Sequence as Text

BLOCK_TOKENS = 64
STEP_TOKENS = 512
MAX_RUNNING = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is computed and kept at once, in tokens and requests."""

    cache_tokens: int
    block_tokens: int = BLOCK_TOKENS
    step_tokens: int = STEP_TOKENS
    max_running: int = MAX_RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counters since the start, and how things are now."""

    num_running: int
    num_waiting: int
    num_preempted: int
    cache_blocks: int
    cache_blocks_held: int
    prompt_tokens: int
    """Tokens of prompts that were started."""
    shared_tokens: int
    """Those of them found in the cache."""


class NativeEngine:
    """A `BatchEngine`. Greedy tokens in float32 on a CPU do not depend on what else runs."""

    def __init__(
        self, model: Model, *, end_tokens: Sequence[int], limits: Limits, kernels: str
    ) -> None:
        """`kernels` is what the operators call themselves, for the description."""
        size = limits.block_tokens
        blocks = BlockManager(max(1, limits.cache_tokens // size), block_tokens=size)
        self._model, self._end_tokens = model, frozenset(end_tokens)
        self._blocks, self._kernels = blocks, kernels
        self._step_tokens = limits.step_tokens
        self._scheduler = Scheduler(
            blocks, step_tokens=limits.step_tokens, max_running=limits.max_running
        )
        self._runner = model.runner(num_blocks=blocks.num_blocks, block_tokens=size)
        self._state = EngineState()

    @property
    def description(self) -> str:
        """Engine, device, number type, operators and cache."""
        dtype = str(self._model.dtype).removeprefix("torch.")
        cache = self._blocks.num_blocks * self._blocks.block_tokens
        return (
            f"native on {self._model.place}, {dtype}, kernels {self._kernels}, "
            f"cache of {cache} tokens"
        )

    @property
    def context_length(self) -> int:
        """The positions the model was made for, or what the cache holds where that is less."""
        return min(self._model.context, self._scheduler.capacity_tokens)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._state.requests)

    @property
    def stats(self) -> Stats:
        """See `Stats`."""
        return Stats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_preempted=self._scheduler.num_preempted,
            cache_blocks=self._blocks.num_blocks,
            cache_blocks_held=self._blocks.num_blocks - self._blocks.num_available,
            prompt_tokens=self._state.counts.prompt_tokens,
            shared_tokens=self._state.counts.shared_tokens,
        )

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Queue a request; see `BatchEngine`. Of a beam search it is the best text."""
        if sampling.beams is not None:
            return self.submit_search(prompt, sampling)[0]
        return self._add(self._text(prompt, sampling), sampling).text.id

    def submit_search(self, prompt: Sequence[int], sampling: Sampling) -> Sequence[int]:
        """Queue a beam search; see `SearchingEngine`. ValueError without beams."""
        text = self._text(prompt, sampling)
        search = BeamSearch(
            prompt,
            sampling,
            end_tokens=tuple(self._end_tokens.union(sampling.end_tokens)),
            max_new_tokens=min(sampling.max_new_tokens, self.context_length - len(prompt)),
            generator=self._generator(sampling),
        )
        require_one_table(text, search, short_length=self._model.short_length)
        make_room(text, search, self._scheduler)
        request = self._add(text, sampling)
        num_texts = 1 if sampling.beams is None else sampling.beams.num_texts
        request.search, request.numbers = search, range(text.id, text.id + num_texts)
        self._state.searched |= dict.fromkeys(request.numbers, text.id)
        self._state.next_number = text.id + num_texts
        return request.numbers

    def step(self) -> list[Event]:
        """Compute once; see `BatchEngine`."""
        works = self._scheduler.schedule()
        if not works:
            return []
        requests = [self._state.requests[work.sequence.id] for work in works]
        try:
            logits_RV = self._compute(works)
        except InferError:
            raise  # ranks that do not find together again
        except Exception as error:  # noqa: BLE001  the failure of all that were computed
            events = [event for one in requests for event in self._failed(one, error)]
        else:
            self._scheduler.advance(works)
            self._count(requests)
            ready = [one for one, work in zip(requests, works, strict=True) if work.is_last]
            events = self._taken(logits_RV, ready)
        for event in events:
            if event.request in self._state.inboxes:
                self._state.inboxes[event.request].append(event)
        return events

    def cancel(self, request: int) -> None:
        """End a request at once; see `BatchEngine`."""
        trunk = self._state.searched.pop(request, request)
        if trunk in self._state.searched.values():
            return  # other texts of the search are wanted
        found = self._state.requests.pop(trunk, None)
        if found is not None:
            self._scheduler.remove(found.text)

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Generator[int, None, None]:
        """One request's tokens as they come; others that were submitted go on with it.

        A beam search gives those of its best text at its end.
        """
        number = self.submit(prompt, sampling)
        inbox = self._state.inboxes[number] = deque()
        try:
            while True:
                while not inbox:
                    self.step()
                event = inbox.popleft()
                if event.failure is not None:
                    raise event.failure
                if event.token is not None:
                    yield event.token
                if event.end is not None:
                    return
        finally:
            del self._state.inboxes[number]
            self.cancel(number)

    def _text(self, prompt: Sequence[int], sampling: Sampling) -> Text:
        self._check(prompt, sampling)
        return Text(
            id=self._state.next_number,
            tokens=list(prompt),
            num_prompt=len(prompt),
            variant=variant_of(self._model, len(prompt)),
        )

    def _add(self, text: Text, sampling: Sampling) -> EngineRequest:
        self._scheduler.add(text)
        request = EngineRequest(text=text, sampling=sampling, generator=self._generator(sampling))
        self._state.requests[text.id] = request
        self._state.next_number = text.id + 1
        return request

    def _generator(self, sampling: Sampling) -> torch.Generator:
        return torch.Generator(self._model.device).manual_seed(sampling.seed)

    def _taken(self, logits_RV: Tensor, ready: Sequence[EngineRequest]) -> list[Event]:
        """What comes of each request whose next token can be chosen."""
        events = list[Event]()
        if any(one.search is not None for one in ready):
            events = self._searched(logits_RV, ready)
            rows = [row for row, one in enumerate(ready) if one.search is None]
            logits_RV, ready = logits_RV[rows], [ready[row] for row in rows]
        for one, chosen in zip(ready, self._choose(logits_RV, ready), strict=True):
            if isinstance(chosen, Exception):
                events += self._failed(one, chosen)
                continue
            try:
                events.append(self._append(one, chosen))
            except BrokenModelError as error:
                events += self._failed(one, error)
        return events

    def _failed(self, request: EngineRequest, error: Exception) -> list[Event]:
        """Its end, and that of all texts of a search; nothing where that was told already."""
        numbers = request.numbers or (request.text.id,)
        if request.text.id not in self._state.requests:
            return []
        wanted = [one for one in numbers if not request.search or one in self._state.searched]
        for number in numbers:
            self.cancel(number)
        return [Event(request=one, token=None, end=None, failure=error) for one in wanted]

    def _searched(self, logits_RV: Tensor, ready: Sequence[EngineRequest]) -> list[Event]:
        """Take searches on by a token; what comes of those that are over."""
        rows_of = dict[int, list[int]]()
        for row, one in enumerate(ready):
            if one.search is not None:
                rows_of.setdefault(one.text.id, []).append(row)
        events = list[Event]()
        for number, rows in rows_of.items():
            request = self._state.requests[number]
            assert request.search is not None
            # The prompt is one text, which all beams continue.
            is_first = not request.text.branches
            try:
                require_numbers(logits_RV[rows], after=len(request.search.answers[0]))
                parents = request.search.push(logits_RV[rows])
            except Exception as error:  # noqa: BLE001  the failure of this search
                events += self._failed(request, error)
                continue
            if request.search.is_done:
                events += self._found(request)
                continue
            for source, target in self._scheduler.branch(
                request.text,
                [0] * len(parents) if is_first else parents,
                continued(request.text, request.search),
            ):
                self._runner.copy(source, target)
        return events

    def _found(self, request: EngineRequest) -> list[Event]:
        assert request.search is not None
        is_limit = request.search.max_new_tokens == request.sampling.max_new_tokens
        events = [
            event
            for number, found in zip(request.numbers, request.search.found, strict=True)
            if number in self._state.searched
            for event in events_of(
                found,
                number,
                at_length="length" if is_limit else "context",
                num_cached=request.num_cached,
            )
        ]
        for number in request.numbers:
            self.cancel(number)
        return events

    def _compute(self, works: Sequence[Work]) -> Tensor:
        """Logits [R, V] of those works after which a token is chosen."""
        return self._runner.run(self._parts(works))

    def _parts(self, works: Sequence[Work]) -> list[Part]:
        return [
            Part(
                tokens=work.sequence.tokens[work.start : work.stop],
                first=work.start,
                blocks=work.sequence.blocks,
                wants_logits=work.is_last,
                is_long=work.sequence.variant == LONG,
                num_prompt=work.sequence.num_prompt,
            )
            for work in works
        ]

    def _choose(
        self, logits_RV: Tensor, ready: Sequence[EngineRequest]
    ) -> "Sequence[Chosen | Exception]":
        """A token for each row, or why there is none."""
        best_R = logits_RV.argmax(-1)
        best: list[int] = best_R.tolist()
        # The largest is NaN where any is.
        most: list[float] = logits_RV.gather(-1, best_R[:, None])[:, 0].tolist()
        found = list[Chosen | Exception]()
        for row, one in enumerate(ready):
            sampling = one.sampling
            is_plain = sampling.is_greedy and not sampling.has_penalties
            if not math.isfinite(most[row]):
                found.append(broken(most[row], after=len(one.answer)))
            elif is_plain and sampling.logprobs is None:
                found.append(Chosen(best[row]))
            else:
                found.append(next_token(logits_RV[row], one))
        return found

    def _append(self, request: EngineRequest, chosen: Chosen) -> Event:
        """The chosen token joins its text, and may end it."""
        text, sampling = request.text, request.sampling
        is_end = chosen.token in self._end_tokens or chosen.token in sampling.end_tokens
        if is_end and not sampling.ignores_end:
            self.cancel(text.id)
            return Event(request=text.id, token=None, end="end", num_cached=request.num_cached)
        text.tokens.append(chosen.token)
        end = self._end_of(request)
        if end is not None:
            self.cancel(text.id)
        elif text.variant != LONG and is_long(self._model, len(text.tokens)):
            self._scheduler.restart(text, variant=LONG)
        return Event(
            request=text.id,
            token=chosen.token,
            end=end,
            logprob=chosen.logprob,
            top_logprobs=chosen.top_logprobs,
            num_cached=request.num_cached,
        )

    def _end_of(self, request: EngineRequest) -> EndReason | None:
        length = len(request.text.tokens)
        if length - request.text.num_prompt >= request.sampling.max_new_tokens:
            return "length"
        return "context" if length >= self.context_length else None

    def _count(self, requests: Sequence[EngineRequest]) -> None:
        for request in requests:
            if not request.is_started:
                request.is_started = True
                self._state.counts.prompt_tokens += request.text.num_prompt
                request.num_cached = request.text.num_shared
                self._state.counts.shared_tokens += request.num_cached

    def _check(self, prompt: Sequence[int], sampling: Sampling) -> None:
        vocabulary = self._model.arch.vocab_size
        if not prompt:
            raise ValueError("the prompt is empty")
        if len(prompt) >= self.context_length:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens; the context of {self.context_length} "
                "leaves no room for an answer"
            )
        for token in (*prompt, *(token for token, _ in sampling.logit_bias)):
            if not 0 <= token < vocabulary:
                raise ValueError(f"token {token}: want 0 <= token < {vocabulary} (the vocabulary)")
