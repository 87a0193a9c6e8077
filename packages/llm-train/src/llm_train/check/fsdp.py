"""Rules of weights that are cut over the data-parallel ranks (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.config import KeptType, Precision, RunConfig


def sharding(config: RunConfig) -> Iterator[str]:
    """What the rows are kept as, and what goes on beside them."""
    if not config.parallel.fsdp:
        return
    parallel, memory = config.parallel, config.memory
    not_with = {
        "optimizer.distributed=false": (
            not config.optimizer.distributed,
            "it cuts the optimizer state with the weights",
        ),
        "parallel.overlap_grad_reduce=true": (
            parallel.overlap_grad_reduce,
            "gradients are always reduced while backward is running",
        ),
        "parallel.overlap_param_gather=true": (
            parallel.overlap_param_gather,
            "a layer's weights are always gathered while the one before it is computed",
        ),
        "train.precision=fp16": (
            config.train.precision is Precision.FP16,
            "its gradients are not scaled; wanted bf16 or fp32",
        ),
        "memory.reuse_parameter_copy=true": (
            memory.reuse_parameter_copy,
            "the fp32 rows are the only copy of the weights",
        ),
        "memory.master_weights=bf16": (
            memory.master_weights is KeptType.BF16,
            "weights are cut as fp32 masters",
        ),
        "memory.gradients=bf16": (
            memory.gradients is KeptType.BF16,
            "gradients are summed in fp32",
        ),
        "memory.offload_optimizer=true": (
            memory.offload_optimizer,
            "its update works on slices of the distributed optimizer",
        ),
        "memory.optimizer_state=bf16": (
            memory.optimizer_state is KeptType.BF16,
            "its update works on slices of the distributed optimizer",
        ),
        "optimizer.frozen": (
            bool(config.optimizer.frozen),
            "every layer's rows are gathered and reduced as one",
        ),
        "train.loss_chunk": (
            config.train.loss_chunk is not None,
            "its gradients are summed outside of the layers that FSDP gathers",
        ),
        "memory.offload_activations": (
            bool(memory.offload_activations),
            "what a layer saves would be told from its weights by their memory, which moves",
        ),
    }
    for name, (is_set, reason) in not_with.items():
        if is_set:
            yield f"parallel: fsdp=true does not go with {name}: {reason}"


def sharding_notes(config: RunConfig) -> list[str]:
    """What a setting does not change."""
    if (
        not config.parallel.fsdp
        and "fsdp_reshard_after_forward" in config.parallel.model_fields_set
    ):
        return ["parallel.fsdp_reshard_after_forward has no effect with fsdp=false"]
    return []
