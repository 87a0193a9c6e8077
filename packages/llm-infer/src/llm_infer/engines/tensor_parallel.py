"""One model on several ranks: rank 0 says what is computed, and all compute it.

An engine works on rank 0 alone, through a `Model` that tells the others each step. What is told is
small: tokens, blocks and wanted rows of a step, one message a step.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llm_infer.model.decoder import Decoder
from llm_infer.model.runner import LocalRunner
from llm_infer.model.steps import Part


@dataclass(frozen=True, slots=True)
class NewRunner:
    """Make a cache; runners are numbered in the order of these messages."""

    num_blocks: int
    block_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """Compute a step."""

    runner: int
    parts: tuple[Part, ...]
    rows: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy a block."""

    runner: int
    source: int
    target: int


Command = NewRunner | Run | Copy


class Others(Protocol):
    """The other ranks, as rank 0 sees them."""

    @property
    def size(self) -> int:
        """Ranks with rank 0."""
        ...

    def step(self, command: Command) -> AbstractContextManager[None]:
        """Tell all a command; within the block rank 0 does its part of it.

        The block is not left half done by a Ctrl-C. An error in it, or a rank that ended, is an
        InferError, and all are ended: they could not find into step again.
        """
        ...


class SharedModel:
    """A `Model` whose decoder has the share of rank 0."""

    def __init__(self, decoder: Decoder, others: Others) -> None:
        self._decoder, self._others = decoder, others
        self._num_runners, self.num_ranks = 0, others.size
        self.arch, self.device, self.dtype = decoder.arch, decoder.device, decoder.dtype
        self.context, self.short_length = decoder.context, decoder.short_length
        self.grows_from = decoder.grows_from
        self.cache_shapes = decoder.cache_shapes

    @property
    def place(self) -> str:
        """See `Model`."""
        each = self._decoder.place.replace(str(self.device), self.device.type, 1)
        return f"{self._others.size} ranks on {each}"

    def runner(self, *, num_blocks: int, block_tokens: int) -> "SharedRunner":
        """See `Model`."""
        with self._others.step(NewRunner(num_blocks, block_tokens)):
            local = self._decoder.runner(num_blocks=num_blocks, block_tokens=block_tokens)
        self._num_runners += 1
        return SharedRunner(self._num_runners - 1, local, self._others)


class SharedRunner:
    """A `ModelRunner` of all ranks."""

    def __init__(self, number: int, local: LocalRunner, others: Others) -> None:
        self._number, self._local, self._others = number, local, others

    def run(self, parts: Sequence[Part], *, rows: Sequence[int] | None = None) -> Tensor:
        """See `ModelRunner`."""
        command = Run(self._number, tuple(parts), None if rows is None else tuple(rows))
        with self._others.step(command):
            return self._local.run(parts, rows=rows)

    def copy(self, source: int, target: int) -> None:
        """See `ModelRunner`."""
        with self._others.step(Copy(self._number, source, target)):
            self._local.copy(source, target)


class Follower:
    """Another rank than 0: does what rank 0 says."""

    def __init__(self, decoder: Decoder) -> None:
        """`decoder` has this rank's share."""
        self._decoder = decoder
        self._runners: list[LocalRunner] = []

    def obey(self, command: Command) -> None:
        """Do this rank's part of a command."""
        match command:
            case NewRunner(num_blocks, block_tokens):
                runner = self._decoder.runner(num_blocks=num_blocks, block_tokens=block_tokens)
                self._runners.append(runner)
            case Run(runner, parts, rows):
                self._runners[runner].run(parts, rows=rows)
            case Copy(runner, source, target):
                self._runners[runner].copy(source, target)
