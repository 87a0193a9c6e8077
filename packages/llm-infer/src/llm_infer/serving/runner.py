"""The thread that owns the engine: takes requests from the event loop, hands back pieces."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from llm_infer.detokenize import Decode
from llm_infer.engine import BatchEngine, Event, PromptReadingEngine, SearchingEngine
from llm_infer.errors import BrokenModelError, InferError
from llm_infer.guide import GuidingEngine
from llm_infer.openai_api.answers import Piece, Usage
from llm_infer.openai_api.errors import broken_model, failed, invalid
from llm_infer.openai_api.jobs import Job
from llm_infer.serving.assembler import Assembler
from llm_infer.serving.mailbox import Mailbox

_log = logging.getLogger(__name__)


class OverloadedError(Exception):
    """As many answers are open as the server allows."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request under way. Close it when its response is sent or nobody reads it any more."""

    mailbox: Mailbox
    num_places: int
    num_prompt: int
    num_new: int = 0
    num_reasoning: int = 0
    is_closed: bool = False
    requests: set[int] = field(default_factory=set[int])
    """The engine's numbers of the answers that are not finished; of the computing thread."""
    cached: dict[int, int] = field(default_factory=dict[int, int])
    """Of each prompt (by `_Running.prompt`): tokens that its first answer found in a cache."""


@dataclass(slots=True)
class _Running:
    ticket: Ticket
    assembler: Assembler
    prompt: int
    """`id` of its tokens, which answers to one prompt share."""


@dataclass(slots=True)
class _Inbox:
    """Commands for the thread, and the word that some have come."""

    commands: deque[Callable[[], None]] = field(default_factory=deque[Callable[[], None]])
    is_filled: threading.Event = field(default_factory=threading.Event)

    def put(self, command: Callable[[], None]) -> None:
        self.commands.append(command)
        self.is_filled.set()


class Runner:
    """Start it, submit jobs from an event loop, stop it."""

    def __init__(self, engine: BatchEngine, decode: Decode, *, max_open: int) -> None:
        """`max_open` bounds the answers that wait, run, or are not yet read by their client."""
        self.max_open = max_open
        self.num_open = 0
        self._engine, self._decode = engine, decode
        self._running: dict[int, _Running] = {}
        self._inbox = _Inbox()
        self._is_stopping = self._is_broken = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self) -> None:
        """Cancel what runs and wait for the thread."""
        self._is_stopping = True
        self._inbox.is_filled.set()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread is there to compute, and can."""
        return self._thread.is_alive() and not self._is_broken

    def submit(self, jobs: Sequence[Job], *, num_prompt: int) -> Ticket:
        """Queue the answers to one request; `num_prompt` counts its prompts' tokens.

        Call it in the event loop. OverloadedError when too many are open already.
        """
        num_places = sum(job.num_places for job in jobs)
        if self.num_open + num_places > self.max_open:
            raise OverloadedError
        self.num_open += num_places
        ticket = Ticket(Mailbox(asyncio.get_running_loop()), num_places, num_prompt)
        self._inbox.put(lambda: self._add(ticket, jobs))
        return ticket

    def close(self, ticket: Ticket) -> None:
        """Give its places back, and cancel what still runs. Call it in the event loop."""
        if ticket.is_closed:
            return
        ticket.is_closed = True
        self.num_open -= ticket.num_places
        self._inbox.put(lambda: self._cancel(ticket))

    # What follows runs on the computing thread.

    def _run(self) -> None:
        while not self._is_stopping:
            if not self._running and not self._inbox.commands:
                self._inbox.is_filled.wait()
            self._inbox.is_filled.clear()
            try:
                while self._inbox.commands:
                    self._inbox.commands.popleft()()
                if self._running and not self._is_stopping:
                    self._step()
            except Exception as error:  # noqa: BLE001  a defect; nobody shall wait for ever
                _log.exception("the engine is broken: nothing is answered any more")
                self._is_broken = True
                self._fail_all(error)
        for request in self._running:
            self._engine.cancel(request)

    def _add(self, ticket: Ticket, jobs: Sequence[Job]) -> None:
        if ticket.is_closed:
            return
        if self._is_broken:
            self._fail(ticket, failed())
            return
        try:
            # Answers have numbers of their own, one job after the other.
            index = 0
            for job in jobs:
                for request in self._submit(job):
                    ticket.requests.add(request)
                    assembler = self._assembler(index, job)
                    self._running[request] = _Running(ticket, assembler, id(job.prompt))
                    index += 1
        except (ValueError, InferError) as error:
            # How an engine refuses a prompt, or a search that never has room.
            self._fail(ticket, invalid(str(error)))
        except Exception as error:  # noqa: BLE001  handed to the one who asked
            self._fail(ticket, error)

    def _submit(self, job: Job) -> Sequence[int]:
        """The engine's number of each answer."""
        if job.sampling.beams is not None:
            assert isinstance(self._engine, SearchingEngine), "asked of engines that can"
            return self._engine.submit_search(job.prompt, job.sampling)
        if job.echo is not None:
            assert isinstance(self._engine, PromptReadingEngine), "asked of engines that can"
            return [self._engine.submit_read(job.prompt, job.sampling)]
        if job.guide is None:
            return [self._engine.submit(job.prompt, job.sampling)]
        assert isinstance(self._engine, GuidingEngine), "guides are made for engines that take them"
        return [self._engine.submit_guided(job.prompt, job.sampling, job.guide)]

    def _assembler(self, index: int, job: Job) -> Assembler:
        reading = job.reading
        return Assembler(
            index,
            self._decode if reading is None else reading.decode,
            job.sampling.stop,
            reading=None if reading is None else reading.answer,
            echo=job.echo,
            is_empty=job.is_empty,
        )

    def _cancel(self, ticket: Ticket) -> None:
        for request in ticket.requests:
            if not self._is_broken:
                self._engine.cancel(request)
            del self._running[request]
        ticket.requests.clear()

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        self._cancel(ticket)
        ticket.mailbox.error = error
        Mailbox.wake([ticket.mailbox])

    def _fail_all(self, error: Exception) -> None:
        for ticket in {id(one.ticket): one.ticket for one in self._running.values()}.values():
            self._fail(ticket, error)

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except Exception as error:  # noqa: BLE001  handed to those who asked
            # A defect, or no memory left: those in computation fail, the server goes on.
            _log.exception("a step of the engine failed")
            self._fail_all(error)
        else:
            Mailbox.wake(
                {id(box): box for event in events for box in self._deliver(event)}.values()
            )

    def _deliver(self, event: Event) -> list[Mailbox]:
        """The mailbox that has news now, if any."""
        running = self._running.get(event.request)
        if running is None:
            # Of an answer that ended or failed earlier in this step.
            return []
        ticket, assembler = running.ticket, running.assembler
        if event.failure is not None:
            self._fail(ticket, _told(event.failure))
            return []
        try:
            for piece in _pieces(event, assembler):
                ticket.mailbox.put(piece, is_at_once=event.score is not None)
        except Exception as error:  # noqa: BLE001  handed to the one who asked
            self._fail(ticket, error)
            return []
        if event.end is not None or assembler.is_stopped:
            self._finish(event, running)
        return [ticket.mailbox]

    def _finish(self, event: Event, running: _Running) -> None:
        ticket = running.ticket
        self._engine.cancel(event.request)
        del self._running[event.request]
        ticket.requests.remove(event.request)
        ticket.num_new += running.assembler.num_tokens
        ticket.num_reasoning += running.assembler.num_reasoning
        # Later answers to a prompt find all of it; it is counted once, as the first found it.
        known = ticket.cached.get(running.prompt, event.num_cached)
        ticket.cached[running.prompt] = min(known, event.num_cached)
        if not ticket.requests:
            ticket.mailbox.usage = Usage(
                num_prompt=ticket.num_prompt,
                num_new=ticket.num_new,
                num_reasoning=ticket.num_reasoning if running.assembler.is_read else None,
                num_cached=sum(ticket.cached.values()),
            )


def _told(failure: Exception) -> Exception:
    """A request's failure as its client hears of it; a defect goes as it is, to be logged."""
    if isinstance(failure, BrokenModelError):
        _log.error("an answer failed: %s", failure)
        return broken_model(str(failure))
    return invalid(str(failure)) if isinstance(failure, InferError) else failure


def _pieces(event: Event, assembler: Assembler) -> Iterator[Piece]:
    if (echoed := assembler.echoed(event)) is not None:
        yield echoed
    if event.token is not None:
        piece = assembler.push(event.token, event)
        if piece.text or piece.reasoning or piece.tokens or piece.calls or piece.finish:
            yield piece
    if event.end is not None and not assembler.is_stopped:
        yield assembler.finish(event.end, event)
