"""Which samples each optimizer step takes of the one global order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_train.config import BatchRamp, TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples [first, first + size) of the global order: one optimizer step over all ranks."""

    first: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizes:
    """Global batch size of every step: constant, or growing over the first samples of the run.

    The ramp is that of Megatron-LM's `--rampup-batch-size`: with n = (global - start) / increment
    growths, a step before which c samples were taken has start + increment · floor(c · n / samples)
    of them, and the full batch once c > samples.
    """

    global_batch_size: int
    ramp: BatchRamp | None = None

    @classmethod
    def of(cls, train: TrainConfig) -> BatchSizes:
        """The batch sizes of a run."""
        return cls(global_batch_size=train.global_batch_size, ramp=train.batch_ramp)

    def size_after(self, consumed: int) -> int:
        """Samples of the step before which `consumed` samples were taken."""
        if self.ramp is None or consumed > self.ramp.samples:
            return self.global_batch_size
        growths = (self.global_batch_size - self.ramp.start) // self.ramp.increment
        # As floats, in this order, like Megatron-LM, so that both round alike.
        done = int(consumed / (self.ramp.samples / growths))
        return self.ramp.start + self.ramp.increment * done

    def steps(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of steps `first_step` (from 0) up to but without `last_step`."""
        first = self.consumed(first_step)
        for _ in range(first_step, last_step):
            batch = Batch(first=first, size=self.size_after(first))
            yield batch
            first += batch.size

    def consumed(self, step: int) -> int:
        """Samples taken by the first `step` steps."""
        taken, done = 0, 0
        while done < step and self.ramp is not None and taken <= self.ramp.samples:
            taken += self.size_after(taken)
            done += 1
        return taken + (step - done) * self.global_batch_size

    def sizes(self) -> list[int]:
        """Every size that a run can have, in order."""
        if self.ramp is None:
            return [self.global_batch_size]
        return [
            *range(self.ramp.start, self.global_batch_size, self.ramp.increment),
            self.global_batch_size,
        ]
