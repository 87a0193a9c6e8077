"""What scores requests: plans them into blocks, then answers a block at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Kind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
Request = tuple[Any, ...]
# Plain JSON: [logprob, greedy] for a continuation, a number for a text, a string for a generation.
Answer = list[float] | float | str


@dataclass(frozen=True, slots=True)
class Work:
    """One block: which of the planned requests it answers, and what the engine needs for that."""

    indices: tuple[int, ...]
    task: Any


class Engine(Protocol):
    """Plans in one process, scores in the same or in another one."""

    def plan(self, kind: Kind, requests: Sequence[Request]) -> Iterator[Work]:
        """Blocks that hold every request once; depends on the requests alone."""
        ...

    def score(self, work: Work) -> list[Answer]:
        """The answers to `work.indices`, in their order."""
        ...


class Scheduler(Protocol):
    """Has blocks scored, by one process or several."""

    def answers(self, works: Iterable[Work]) -> Iterator[tuple[Work, list[Answer]]]:
        """Each block with its answers, as they come."""
        ...


class Serial:
    """Scores in this process, one block after another."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def answers(self, works: Iterable[Work]) -> Iterator[tuple[Work, list[Answer]]]:
        """Each block with its answers, in order."""
        for work in works:
            yield work, self._engine.score(work)
