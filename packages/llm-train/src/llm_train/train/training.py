"""The training loop of one rank: build, restore, step, evaluate, save."""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train import check
from llm_train.arch import Arch
from llm_train.config import KeptType, Precision, RunConfig
from llm_train.interfaces import WeightSource
from llm_train.metrics import EvalMetrics, StepMetrics
from llm_train.model.build import Model, build_chunks, padded_vocab_size, transformer_config
from llm_train.model.fill import fill_from_source, fill_randomly
from llm_train.train.data import MicroBatches, Samples, Splits, iterate
from llm_train.train.memory.activations import offload_activations
from llm_train.train.memory.attach import HOST
from llm_train.train.optimizer import build_optimizer, build_schedule
from llm_train.train.precision import DTYPES
from llm_train.train.step import Batch, Trainable, eval_loss, train_step


class RunLog(Protocol):
    """Where a rank tells its steps; only rank 0 has one."""

    def step(self, metrics: StepMetrics) -> None:
        """Record one optimizer step."""
        ...

    def evaluation(self, metrics: EvalMetrics) -> None:
        """Record one pass over the validation batches."""
        ...


class CheckpointStore(Protocol):
    """Where checkpoints are kept; every rank calls it."""

    def save(
        self,
        chunks: Sequence[Model],
        optimizer: MegatronOptimizer,
        *,
        iteration: int,
        consumed_samples: int,
    ) -> None:
        """Keep the state after `iteration` steps."""
        ...

    def restore(self, chunks: Sequence[Model], optimizer: MegatronOptimizer) -> int:
        """Fill model and optimizer from the newest checkpoint; its iteration, 0 without one."""
        ...


class Training:
    """One run on this rank, inside an open device session with its process groups.

    `source` holds the first weights, None for random ones. Building it fills the model, from the
    newest checkpoint where there is one: `first_step` steps are done already.
    """

    def __init__(
        self,
        config: RunConfig,
        arch: Arch,
        *,
        source: WeightSource | None,
        store: CheckpointStore,
        device: torch.device,
    ) -> None:
        self.config = config
        self.arch = arch
        self.source = source
        self.store = store
        self.device = device
        self.chunks, self.trainable = self._build()
        self.first_step = store.restore(self.chunks, self.trainable.optimizer)
        self.trainable.schedule.step(increment=self.first_step)

    def go(self, splits: Splits, log: RunLog | None) -> None:
        """Train until `train.max_steps` are done, evaluating and saving as the config says."""
        train, every = self.config.train, self.config.save.every
        batches = self._batches(splits.train, self.first_step, train.max_steps)
        for step in range(self.first_step + 1, train.max_steps + 1):
            metrics = self._step(step, batches)
            if log is not None:
                log.step(metrics)
            if splits.valid is not None and train.eval_every and step % train.eval_every == 0:
                loss = self._evaluate(splits.valid)
                if log is not None:
                    log.evaluation(EvalMetrics(step=step, eval_loss=loss))
            if step == train.max_steps or (every and step % every == 0):
                self.store.save(
                    self.chunks,
                    self.trainable.optimizer,
                    iteration=step,
                    consumed_samples=metrics.consumed_samples,
                )

    def _build(self) -> tuple[list[Model], Trainable]:
        config, dtype = self.config, DTYPES[self.config.train.precision]
        model_config = transformer_config(
            self.arch,
            config.parallel,
            dtype=dtype,
            init_std=config.model.init_std,
            recompute=config.recompute,
            moe=config.moe,
        )
        chunks = build_chunks(self.arch, model_config)
        if self.device.type != "cpu":
            for chunk in chunks:
                chunk.to(self.device)
        if self.source is not None:
            rows = padded_vocab_size(self.arch, config.parallel.tp)
            fill_from_source(chunks, self.source, padded_rows=rows)
        else:
            fill_randomly(chunks, std=config.model.init_std, seed=config.train.seed)
        offload_activations(chunks, config.memory.offload_activations, host=HOST)
        wrapped = _wrap(chunks, model_config, config)
        optimizer = build_optimizer(
            config.optimizer,
            wrapped,
            dtype=dtype,
            overlap_param_gather=config.parallel.overlap_param_gather,
            tokens_per_micro_batch=config.train.micro_batch_size * config.train.seq_length,
            memory=config.memory,
        )
        model_config.finalize_model_grads_func = finalize_model_grads
        model_config.grad_scale_func = optimizer.scale_loss
        layout = check.layout(config, dist.get_world_size())
        trainable = Trainable(
            chunks=wrapped,
            optimizer=optimizer,
            schedule=build_schedule(config.optimizer, optimizer),
            micro_batches=layout.micro_batches,
            micro_batch_size=config.train.micro_batch_size,
            seq_length=config.train.seq_length,
            is_packed=config.data.reset_documents,
            device=self.device,
        )
        return chunks, trainable

    def _step(self, step: int, batches: Sequence[Iterator[Batch]]) -> StepMetrics:
        train = self.config.train
        began = time.perf_counter()
        result = train_step(self.trainable, batches)
        seconds = time.perf_counter() - began
        return StepMetrics(
            step=step,
            consumed_samples=step * train.global_batch_size,
            consumed_tokens=step * train.global_batch_size * train.seq_length,
            loss=result.loss,
            lr=result.lr,
            grad_norm=result.grad_norm,
            tokens_per_second=train.global_batch_size * train.seq_length / seconds,
            step_time_s=seconds,
            skipped=result.is_skipped,
            aux_loss=result.router.aux_loss,
            seq_aux_loss=result.router.seq_aux_loss,
            z_loss=result.router.z_loss,
        )

    def _evaluate(self, valid: Samples) -> float:
        """Mean loss over the same samples each time."""
        steps = self.config.train.eval_steps
        return eval_loss(self.trainable, self._batches(valid, 0, steps), steps=steps)

    def _batches(self, dataset: Samples, first_step: int, last_step: int) -> list[Iterator[Batch]]:
        """One iterator a model chunk: each chunk of a virtual pipeline draws its own."""
        indices = MicroBatches(
            first_step=first_step,
            last_step=last_step,
            global_batch_size=self.config.train.global_batch_size,
            micro_batch_size=self.config.train.micro_batch_size,
            dp_rank=parallel_state.get_data_parallel_rank(),
            dp_size=parallel_state.get_data_parallel_world_size(),
        )
        workers = self.config.data.num_workers
        return [iterate(dataset, indices, num_workers=workers) for _ in self.chunks]


def _wrap(
    chunks: list[Model], model_config: TransformerConfig, config: RunConfig
) -> list[DistributedDataParallel]:
    """Gradient buffers and their reduction around each chunk."""
    parallel = config.parallel
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=config.memory.gradients is KeptType.FP32,
        use_distributed_optimizer=config.optimizer.distributed,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
    )
    is_half = config.train.precision is not Precision.FP32
    wrapped = [
        DistributedDataParallel(
            model_config,
            ddp,
            Float16Module(model_config, chunk) if is_half else chunk,
            disable_bucketing=index > 0,
        )
        for index, chunk in enumerate(chunks)
    ]
    if parallel.overlap_grad_reduce:
        hooks = [chunk.no_sync for chunk in wrapped]
        model_config.no_sync_func = hooks if len(hooks) > 1 else hooks[0]  # pyright: ignore[reportAttributeAccessIssue]
    return wrapped
