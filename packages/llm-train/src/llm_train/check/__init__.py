"""Rules that tie the fields of a run to its model and its ranks, each told with its equation."""

from __future__ import annotations

from llm_train.arch import Arch
from llm_train.check.context import context
from llm_train.check.dropout import dropout
from llm_train.check.experts import expert_notes, experts
from llm_train.check.fsdp import sharding, sharding_notes
from llm_train.check.handover import handover
from llm_train.check.indexer import indexer, indexer_notes
from llm_train.check.layout import Layout, batch, layout, world
from llm_train.check.lora import adapters
from llm_train.check.memory import activations, recompute, state
from llm_train.check.mixers import mixers
from llm_train.check.pipeline import pipeline
from llm_train.check.positions import positions
from llm_train.check.prediction import prediction, prediction_notes
from llm_train.check.schedule import overlap, ramp, schedule
from llm_train.check.sft import samples
from llm_train.check.tensor import tensor
from llm_train.config import Device, Precision, RunConfig

__all__ = ["Layout", "layout", "notes", "problems"]


def problems(config: RunConfig, arch: Arch, world_size: int) -> list[str]:
    """Find every rule that the run breaks, in words with numbers; none when it may start."""
    return [
        *world(config, world_size),
        *batch(config, world_size),
        *schedule(config),
        *samples(config),
        *adapters(config, arch),
        *ramp(config, world_size),
        *tensor(config, arch),
        *context(config, arch),
        *mixers(config, arch),
        *pipeline(config, arch),
        *handover(config, arch),
        *experts(config, arch, world_size),
        *positions(config, arch),
        *dropout(config, arch),
        *prediction(config, arch),
        *indexer(config, arch),
        *recompute(config, arch),
        *state(config),
        *activations(config),
        *sharding(config),
        *overlap(config),
    ]


def notes(config: RunConfig, arch: Arch) -> list[str]:
    """Say what the run will do that its config does not say in so many words."""
    found: list[str] = []
    parallel, train = config.parallel, config.train
    if parallel.vpp is not None:
        found.append(
            "parallel.vpp is set: stages exchange activations by overlapped point-to-point calls "
            "(batched ones give a wrong loss with pp=2)"
        )
    if parallel.tp == 1 and "sequence_parallel" in parallel.model_fields_set:
        found.append("parallel.sequence_parallel has no effect with tp=1")
    is_packed = config.data.reset_documents and config.kernels is None
    is_shared = parallel.cp > 1 or is_packed
    is_unfused = config.device is Device.NPU or (
        config.device is Device.CUDA and train.precision is Precision.FP32
    )
    if is_shared and is_unfused:
        found.append(
            f"parallel.cp and data.reset_documents have no fused attention on device="
            f"{config.device} in train.precision={train.precision}: scores are computed in fp32"
        )
    if parallel.cp == 1 and "cp_kind" in parallel.model_fields_set:
        found.append("parallel.cp_kind has no effect with cp=1")
    found += expert_notes(config)
    found += sharding_notes(config)
    found += prediction_notes(config, arch)
    found += indexer_notes(config, arch)
    if train.seq_length > arch.max_position_embeddings and arch.position.kind != "learned":
        found.append(
            f"train.seq_length({train.seq_length}) is beyond the model's "
            f"max_position_embeddings({arch.max_position_embeddings})"
        )
    if config.device is Device.CPU and train.precision is not Precision.FP32:
        found.append(f"train.precision={train.precision} is seldom faster than fp32 on a cpu")
    memory = config.memory
    if config.device is Device.CPU and (memory.offload_optimizer or memory.offload_activations):
        found.append("memory: what is offloaded from a cpu stays in the same memory")
    return found
