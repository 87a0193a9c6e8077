"""What one rank trains: model, optimizer and schedule, built and restored."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
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
from llm_train.kernels import Kernels
from llm_train.model.build import Model, build_chunks, padded_vocab_size, transformer_config
from llm_train.model.fill import Put, fill_from_source, fill_randomly
from llm_train.model.kernels import use_kernels
from llm_train.model.lora.attach import attach_adapters, let_frozen_embeddings_need_gradients
from llm_train.model.lora.first import FirstAdapter, begin_as
from llm_train.model.lora.quantized import QuantizedBase
from llm_train.model.lora.saved import let_saved_train
from llm_train.model.lora.tensors import base_digest, fill_adapters
from llm_train.model.noise import add_noise
from llm_train.model.shards import put
from llm_train.model.unfilled import give_memory, unfilled_matrices
from llm_train.train.fsdp import ShardedModel, Sharding, round_rows, shard_weights
from llm_train.train.memory.activations import offload_activations
from llm_train.train.memory.attach import HOST
from llm_train.train.not_finite import guard_updates
from llm_train.train.optimizer import build_optimizer, build_schedule, update_in_one_pass
from llm_train.train.precision import DTYPES
from llm_train.train.selection import freeze, mark_rates
from llm_train.train.step import Trainable
from llm_train.train.weight_gradients import add_in_products


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was done before this run: steps, those that moved the schedule, samples taken."""

    step: int = 0
    schedule_steps: int = 0
    consumed_samples: int = 0


class CheckpointStore(Protocol):
    """Where checkpoints are kept; every rank calls it.

    `base_digest` is of the frozen weights that adapters are for, None where the model trains.
    """

    base_digest: str | None

    def save(
        self,
        chunks: Sequence[Model],
        optimizer: MegatronOptimizer,
        *,
        iteration: int,
        consumed_samples: int,
        schedule_steps: int,
        is_last: bool,
    ) -> None:
        """Keep the state after `iteration` steps; a failure is told, not raised."""
        ...

    def restore(self, chunks: Sequence[Model], optimizer: MegatronOptimizer) -> Restored:
        """Fill model and optimizer from the newest checkpoint, if there is one."""
        ...

    def poll(self) -> None:
        """Finish a checkpoint that is being written meanwhile, if it has been."""
        ...

    def wait(self) -> None:
        """Wait for what is being written."""
        ...

    def finish(self) -> None:
        """Wait for what is being written; raise when the last checkpoint is not there."""
        ...

    def newest(self) -> str:
        """Say which whole checkpoint is the newest."""
        ...


class Training:
    """One run on this rank, inside an open device session with its process groups.

    `source` holds the first weights, None for random ones, and `first_adapter` what adapters begin
    as, None for random and zero ones; `kernels` are the fused operators that
    layers use, None for plain torch. Building it fills the model, from the newest checkpoint where
    there is one: `restored` is done already.
    """

    def __init__(
        self,
        config: RunConfig,
        arch: Arch,
        *,
        source: WeightSource | None,
        store: CheckpointStore,
        device: torch.device,
        kernels: Kernels | None = None,
        first_adapter: FirstAdapter | None = None,
    ) -> None:
        self.config = config
        self.kernels = kernels
        self.first_adapter = first_adapter
        self.arch = arch
        self.source = source
        self.store = store
        self.device = device
        self.base_digest: str | None = None
        self.chunks, self.trainable = self._build()
        store.base_digest = self.base_digest
        self.restored = store.restore(self.chunks, self.trainable.optimizer)
        update_in_one_pass(self.trainable.optimizer)
        self.trainable.schedule.step(increment=self.restored.schedule_steps)

    def save(self, *, iteration: int, consumed_samples: int, is_last: bool) -> None:
        """Hand the state after `iteration` steps to the store."""
        self.store.save(
            self.chunks,
            self.trainable.optimizer,
            iteration=iteration,
            consumed_samples=consumed_samples,
            schedule_steps=self.trainable.schedule.num_steps,
            is_last=is_last,
        )

    def _build(self) -> tuple[list[Model], Trainable]:
        config, dtype = self.config, DTYPES[self.config.train.precision]
        is_sharded = config.parallel.fsdp
        model_config = transformer_config(
            self.arch,
            config.parallel,
            dtype=dtype,
            init_std=config.model.init_std,
            recompute=config.recompute,
            moe=config.moe,
            is_frozen=config.lora is not None,
        )
        use_kernels(model_config, self.kernels)
        model_config.attention_dropout = config.train.attention_dropout
        model_config.hidden_dropout = config.train.hidden_dropout
        # Where megatron-core has a faster way whose sums come in any order.
        model_config.deterministic_mode = config.train.deterministic
        model_config.dsa_indexer_loss_coeff = config.train.indexer_loss_coeff
        lora = config.lora
        if is_sharded and lora is None:
            # Parameters are the masters; what layers compute with is made of them.
            model_config.params_dtype = torch.float32
        is_quantized = lora is not None and lora.quantize is not None
        with unfilled_matrices() if is_sharded or is_quantized else nullcontext():
            chunks = build_chunks(self.arch, model_config)
        if lora is not None:
            first = self.first_adapter
            columns = {} if first is None else first.columns
            masters = torch.float32 if is_sharded else dtype
            attach_adapters(chunks, lora, dtype=masters, columns=columns)
            let_saved_train(chunks, lora, dtype=masters)
        self._fill(chunks, self._place(chunks, dtype))
        self._choose_what_trains(chunks)
        offload_activations(chunks, config.memory.offload_activations, host=HOST)
        wrapped = (_shards if is_sharded else _wrap)(chunks, model_config, config)
        if not is_sharded:
            for chunk in chunks:
                add_in_products(chunk, self.arch)
        optimizer = build_optimizer(
            config.optimizer,
            wrapped,
            dtype=dtype,
            overlap_param_gather=config.parallel.overlap_param_gather,
            tokens_per_micro_batch=config.train.micro_batch_size * config.train.seq_length,
            memory=config.memory,
        )
        guard_updates(optimizer)
        model_config.finalize_model_grads_func = finalize_model_grads
        model_config.grad_scale_func = optimizer.scale_loss
        layout = check.layout(config, dist.get_world_size())
        trainable = Trainable(
            chunks=wrapped,
            optimizer=optimizer,
            schedule=build_schedule(config.optimizer, optimizer),
            micro_batches=layout.micro_batches,
            loss_mean=config.sft.loss_mean,
            is_packed=config.data.reset_documents,
            turns_by_length=any(chunk.turns_by_length for chunk in chunks),
            indexers=self.arch.num_indexers if config.train.indexer_loss_coeff > 0.0 else 0,
            mtp_layers=model_config.mtp_num_layers or 0,
            mtp_loss_scale=config.train.mtp_loss_scale,
            device=self.device,
        )
        return chunks, trainable

    def _choose_what_trains(self, chunks: Sequence[Model]) -> None:
        """Which parameters, at which rates, and adapters as they begin; on filled chunks."""
        config = self.config
        for chunk in chunks:
            chunk.loss_chunk = config.train.loss_chunk
        if config.lora is not None:
            self.base_digest = base_digest(chunks)
            fill_adapters(chunks, seed=config.train.seed)
            if (first := self.first_adapter) is not None:
                first.refuse_other_base(self.base_digest)
                begin_as(chunks, first)
        freeze(chunks, config.optimizer.frozen)
        mark_rates(chunks, config.optimizer.lr_scales)
        let_frozen_embeddings_need_gradients(chunks)
        if config.sft.neftune_alpha is not None:
            for chunk in chunks:
                add_noise(chunk, config.sft.neftune_alpha)

    def _place(self, chunks: Sequence[Model], dtype: torch.dtype) -> Put:
        """Give the weights their memory, on the device; what fills them."""
        parallel, lora = self.config.parallel, self.config.lora
        base = None
        if lora is not None and lora.quantize is not None:
            base = QuantizedBase(chunks, is_double=lora.double_quantize, device=self.device)
        for chunk in chunks:
            if parallel.fsdp:
                reshard = parallel.fsdp_reshard_after_forward
                shard_weights(
                    chunk,
                    Sharding(device=self.device, dtype=dtype, reshard_after_forward=reshard),
                    but=() if base is None else base.weights,
                )
            elif base is not None:
                give_memory(chunk, self.device, but=base.weights)
            elif self.device.type != "cpu":
                chunk.to(self.device)
        return put if base is None else base.put

    def _fill(self, chunks: Sequence[Model], put: Put) -> None:
        if self.source is not None:
            rows = padded_vocab_size(self.arch, self.config.parallel.tp)
            fill_from_source(chunks, self.source, padded_rows=rows, put=put)
        else:
            config = self.config
            fill_randomly(chunks, std=config.model.init_std, seed=config.train.seed, put=put)


def _shards(
    chunks: list[Model], model_config: TransformerConfig, config: RunConfig
) -> list[ShardedModel]:
    """The rows of each chunk that this rank trains."""
    wrapped = [ShardedModel(model_config, chunk) for chunk in chunks]
    round_rows(wrapped, DTYPES[config.train.precision])
    return wrapped


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
