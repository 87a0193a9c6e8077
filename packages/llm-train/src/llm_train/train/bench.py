"""A run on random tokens that leaves nothing behind: for its speed and its memory alone."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from torch.utils.data import Dataset

from llm_train.config import RunConfig
from llm_train.metrics import EvalMetrics, StepMetrics
from llm_train.model.build import Model
from llm_train.train.training import Restored

# More samples than any measurement takes; none of them exists before it is drawn.
_SAMPLES = 1 << 40


def only_steps(config: RunConfig, steps: int) -> RunConfig:
    """The run of `config` with `steps` steps of its full batch, without evaluations."""
    train = {"max_steps": steps, "eval_every": None, "batch_ramp": None}
    save = {"every": None, "seconds": None}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "save": config.save.model_copy(update=save),
        }
    )


class RandomTokens(Dataset[dict[str, torch.Tensor]]):
    """Samples of uniformly random tokens, each from its own number."""

    def __init__(self, *, vocab_size: int, seq_length: int) -> None:
        self._vocab_size = vocab_size
        self._seq_length = seq_length

    def __len__(self) -> int:
        return _SAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        row = torch.randint(self._vocab_size, (self._seq_length + 1,), generator=generator)
        return {
            "tokens": row[:-1],
            "labels": row[1:],
            "position_ids": torch.arange(self._seq_length),
            "loss_mask": torch.ones(self._seq_length),
        }


class NoCheckpoints:
    """A store that keeps nothing and finds nothing."""

    base_digest: str | None = None

    def save(self, chunks: Sequence[Model], optimizer: MegatronOptimizer, **_facts: Any) -> None:
        """Keep nothing."""

    def restore(self, chunks: Sequence[Model], optimizer: MegatronOptimizer) -> Restored:
        """Find nothing."""
        del chunks, optimizer
        return Restored()

    def poll(self) -> None:
        """Nothing is being written."""

    def wait(self) -> None:
        """Nothing is being written."""

    def finish(self) -> None:
        """Nothing is missing."""

    def newest(self) -> str:
        """There is none."""
        return "a benchmark keeps no checkpoint"


class Collected:
    """The steps of a run, kept in memory."""

    def __init__(self) -> None:
        self.steps: list[StepMetrics] = []

    def step(self, metrics: StepMetrics) -> None:
        """Keep one step."""
        self.steps.append(metrics)

    def evaluation(self, metrics: EvalMetrics) -> None:
        """A benchmark has none."""

    def say(self, text: str) -> None:
        """A benchmark tells its result alone."""
