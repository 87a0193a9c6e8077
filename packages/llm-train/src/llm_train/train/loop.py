"""The training loop of one rank: steps, metrics, evaluations and checkpoints until told to stop."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch.distributed as dist
from megatron.core import parallel_state

from llm_train import batches
from llm_train.arch import Arch
from llm_train.batches import BatchSizes
from llm_train.config import OnNan, Precision, RunConfig
from llm_train.flops import backward_and_forward, logit_flops, training_flops
from llm_train.metrics import EvalMetrics, StepMetrics
from llm_train.train.agreement import agree
from llm_train.train.ahead import Batch
from llm_train.train.data import MicroBatches, Samples, Splits, iterate
from llm_train.train.draws import seed_draws
from llm_train.train.not_finite import NotFiniteError, describe
from llm_train.train.samples import SampleRows
from llm_train.train.step import StepResult, eval_loss, train_step
from llm_train.train.training import Training


class RunLog(Protocol):
    """Where a rank tells its steps; only rank 0 has one."""

    def step(self, metrics: StepMetrics) -> None:
        """Record one optimizer step."""
        ...

    def evaluation(self, metrics: EvalMetrics) -> None:
        """Record one pass over the validation batches."""
        ...

    def say(self, text: str) -> None:
        """Tell the user a line."""
        ...


class Stop(Protocol):
    """What asks this process to end early."""

    def asked(self) -> int:
        """The number of the signal that asked, 0 when none did."""
        ...

    def name(self, number: int) -> str:
        """The signal's name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a rank's loop needs of its process and its device.

    `peak_flops` is a device's peak in operations a second, None where it is not known.
    """

    log: RunLog | None
    stop: Stop
    memory_bytes: Callable[[], int]
    peak_flops: float | None


class Loop:
    """The steps of one run that are still to do."""

    def __init__(self, training: Training, splits: Splits, surroundings: Surroundings) -> None:
        self.training = training
        self.splits = splits
        self.around = surroundings
        self.sizes = BatchSizes.of(training.config.train)
        self.meter = Meter(
            training.config,
            training.arch,
            peak_flops=surroundings.peak_flops,
            samples=splits.train if isinstance(splits.train, SampleRows) else None,
        )
        self.saved_s = time.monotonic()

    def go(self) -> None:
        """Train until `train.max_steps` are done, evaluating and saving as the config says.

        Asked to stop, it saves after the step it is in and returns. Raises NotFiniteError, and what
        the store raises when the last checkpoint could not be written.
        """
        training = self.training
        first, last = training.restored.step, training.config.train.max_steps
        self._compare_samples()
        drawn = self._batches(self.splits.train, self.sizes, first, last)
        for step, batch in enumerate(self.sizes.steps(first, last), start=first + 1):
            metrics = self._step(step, batch, drawn)
            if self._after(metrics):
                break
        training.store.finish()

    def _compare_samples(self) -> None:
        restored = self.training.restored
        wanted = self.sizes.consumed(restored.step)
        if restored.consumed_samples != wanted:
            self._say(
                f"WARNING: the checkpoint of step {restored.step} had taken "
                f"{restored.consumed_samples} samples, with these batch sizes it would be "
                f"{wanted}: the order of samples goes on from there"
            )

    def _step(
        self, step: int, batch: batches.Batch, drawn: Sequence[Iterator[Batch]]
    ) -> StepMetrics:
        trainable, train = self.training.trainable, self.training.config.train
        dp = parallel_state.get_data_parallel_world_size()
        trainable = replace(trainable, micro_batches=batch.size // (train.micro_batch_size * dp))
        seed_draws(self.training.config, step)
        began_s = time.perf_counter()
        result = train_step(trainable, drawn)
        metrics = self.meter.measure(step, batch, result, time.perf_counter() - began_s)
        if not result.is_finite:
            self._not_finite(metrics, batch, result)
        return metrics

    def _not_finite(self, metrics: StepMetrics, batch: batches.Batch, result: StepResult) -> None:
        train = self.training.config.train
        found = describe(
            metrics,
            batch,
            result,
            dataset=self.splits.train,
            micro_batch_size=train.micro_batch_size,
        )
        if train.on_nan is OnNan.SKIP:
            self._say(f"{found}; the step is skipped (train.on_nan=skip)")
            return
        if self.around.log is not None:
            self.around.log.step(metrics)
        self.training.store.wait()
        raise NotFiniteError(f"{found}; {self.training.store.newest()}")

    def _after(self, metrics: StepMetrics) -> bool:
        """Tell, evaluate and save after a step; True when the run is to end now."""
        training, log = self.training, self.around.log
        save, step = training.config.save, metrics.step
        due_s = math.inf if save.seconds is None else self.saved_s + save.seconds
        agreed = agree(
            stop=self.around.stop.asked(),
            is_save_due=time.monotonic() >= due_s,
            memory_bytes=self.around.memory_bytes(),
        )
        if log is not None:
            log.step(replace(metrics, memory_bytes=agreed.memory_bytes))
        is_last = step == training.config.train.max_steps
        if not agreed.stop:
            self._evaluate_if_due(step)
        if is_last or agreed.stop or agreed.is_save_due or (save.every and step % save.every == 0):
            training.save(
                iteration=step,
                consumed_samples=metrics.consumed_samples,
                is_last=is_last or bool(agreed.stop),
            )
            self.saved_s = time.monotonic()
        else:
            training.store.poll()
        if agreed.stop:
            self._say(
                f"stopping after step {step} of {training.config.train.max_steps}: "
                f"{self.around.stop.name(agreed.stop)}"
            )
        return bool(agreed.stop)

    def _evaluate_if_due(self, step: int) -> None:
        train, valid = self.training.config.train, self.splits.valid
        if valid is None or not train.eval_every or step % train.eval_every:
            return
        # The same samples each time.
        steps = train.eval_steps
        sizes = BatchSizes(global_batch_size=train.global_batch_size)
        loss = eval_loss(
            self.training.trainable, self._batches(valid, sizes, 0, steps), steps=steps
        )
        if self.around.log is not None:
            self.around.log.evaluation(EvalMetrics(step=step, eval_loss=loss))

    def _batches(
        self, dataset: Samples, sizes: BatchSizes, first_step: int, last_step: int
    ) -> list[Iterator[Batch]]:
        """One iterator a model chunk: each chunk of a virtual pipeline draws its own."""
        config = self.training.config
        indices = MicroBatches(
            first_step=first_step,
            last_step=last_step,
            sizes=sizes,
            micro_batch_size=config.train.micro_batch_size,
            dp_rank=parallel_state.get_data_parallel_rank(),
            dp_size=parallel_state.get_data_parallel_world_size(),
        )
        workers = config.data.num_workers
        drawn = dataset.padded(indices) if isinstance(dataset, SampleRows) else indices
        return [iterate(dataset, drawn, num_workers=workers) for _ in self.training.chunks]

    def _say(self, text: str) -> None:
        if self.around.log is not None:
            self.around.log.say(text)


class Counted(Protocol):
    """Samples whose tokens are counted, those at places `first` to `stop` of a run's order."""

    def tokens(self, first: int, stop: int) -> int:
        """All of them, without padding."""
        ...

    def learned(self, first: int, stop: int) -> int:
        """Those whose logits a loss needs."""
        ...


class Meter:
    """Turns steps into metrics: speed, use of the devices' peak, time left.

    `samples` are those that are not all `seq_length` long, nor learned in every token.
    """

    def __init__(
        self,
        config: RunConfig,
        arch: Arch,
        *,
        peak_flops: float | None,
        samples: Counted | None = None,
    ) -> None:
        self._samples = samples or _Whole(config.train.seq_length)
        self._train = config.train
        self._sizes = BatchSizes.of(config.train)
        self._all_samples = self._sizes.consumed(config.train.max_steps)
        self._token_flops = training_flops(
            arch,
            config.train.seq_length,
            is_indexer_frozen=config.train.indexer_loss_coeff == 0.0,
            is_frozen=config.lora is not None,
        )
        # Logits are of learned tokens alone.
        times = backward_and_forward(is_frozen=config.lora is not None)
        self._logit_flops = times * logit_flops(arch)
        # The table of peaks is of half precision.
        is_half = config.train.precision is not Precision.FP32
        self._peak_flops = peak_flops if is_half else None
        self._started_s: float | None = None
        self._samples_before = 0

    def measure(
        self, step: int, batch: batches.Batch, result: StepResult, seconds: float
    ) -> StepMetrics:
        """The metrics of a step that took `seconds`."""
        now_s, consumed = time.monotonic(), batch.first + batch.size
        if self._started_s is None:
            self._started_s, self._samples_before = now_s - seconds, batch.first
        per_sample_s = (now_s - self._started_s) / (consumed - self._samples_before)
        tokens = self._samples.tokens(batch.first, consumed)
        idle = tokens - self._samples.learned(batch.first, consumed)
        flops = tokens * self._token_flops - idle * self._logit_flops
        return StepMetrics(
            step=step,
            consumed_samples=consumed,
            consumed_tokens=self._samples.tokens(0, consumed),
            loss=result.loss,
            lr=result.lr,
            grad_norm=result.grad_norm,
            tokens_per_second=tokens / seconds,
            step_time_s=seconds,
            mfu=self._mfu(flops / seconds),
            eta_s=per_sample_s * (self._all_samples - consumed),
            skipped=result.is_skipped,
            mtp_loss=result.mtp_loss,
            indexer_loss=result.indexer_loss,
            aux_loss=result.router.aux_loss,
            seq_aux_loss=result.router.seq_aux_loss,
            z_loss=result.router.z_loss,
        )

    def _mfu(self, flops_per_second: float) -> float | None:
        if self._peak_flops is None:
            return None
        return flops_per_second / (self._peak_flops * dist.get_world_size())


class _Whole:
    """Sequences of one length, learned in every token."""

    def __init__(self, seq_length: int) -> None:
        self._seq_length = seq_length

    def tokens(self, first: int, stop: int) -> int:
        return (stop - first) * self._seq_length

    def learned(self, first: int, stop: int) -> int:
        return self.tokens(first, stop)
