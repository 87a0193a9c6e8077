"""Rules that tie the fields of a run to its model and its ranks, each told with its equation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_train.arch import Arch, Attention
from llm_train.config import Device, Precision, RunConfig

# Mixers whose replicated parts get their whole gradient only when sequence parallel sums it.
_SEQUENCE_PARALLEL_MIXERS = ("gdn",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a run falls onto its ranks."""

    world_size: int
    dp: int
    expert_dp: int
    micro_batches: int
    tokens_per_step: int


def layout(config: RunConfig, world_size: int) -> Layout:
    """Derive the sizes that the config leaves open; call it when `problems` finds none."""
    parallel, train = config.parallel, config.train
    dp = world_size // (parallel.tp * parallel.pp)
    return Layout(
        world_size=world_size,
        dp=dp,
        expert_dp=world_size // (parallel.etp * parallel.ep * parallel.pp),
        micro_batches=train.global_batch_size // (train.micro_batch_size * dp),
        tokens_per_step=train.global_batch_size * train.seq_length,
    )


def problems(config: RunConfig, arch: Arch, world_size: int) -> list[str]:
    """Find every rule that the run breaks, in words with numbers; none when it may start."""
    return [
        *_world(config, world_size),
        *_batch(config, world_size),
        *_schedule(config),
        *_tensor(config, arch),
        *_pipeline(config, arch),
        *_experts(config, arch, world_size),
        *_positions(config, arch),
        *_overlap(config),
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
    if train.seq_length > arch.max_position_embeddings and arch.position.kind != "learned":
        found.append(
            f"train.seq_length({train.seq_length}) is beyond the model's "
            f"max_position_embeddings({arch.max_position_embeddings})"
        )
    if config.device is Device.CPU and train.precision is not Precision.FP32:
        found.append(f"train.precision={train.precision} is seldom faster than fp32 on a cpu")
    return found


def _world(config: RunConfig, world_size: int) -> Iterator[str]:
    tp, pp = config.parallel.tp, config.parallel.pp
    if world_size % (tp * pp):
        yield (
            f"parallel: tp({tp}) * pp({pp}) = {tp * pp} does not divide world size {world_size}; "
            f"wanted tp * pp * dp = world size"
        )


def _batch(config: RunConfig, world_size: int) -> Iterator[str]:
    train, model_ranks = config.train, config.parallel.tp * config.parallel.pp
    if world_size % model_ranks:
        return
    dp = world_size // model_ranks
    batch, micro = train.global_batch_size, train.micro_batch_size
    if batch % (micro * dp):
        yield (
            f"train: global_batch_size({batch}) is not a multiple of micro_batch_size({micro}) * "
            f"dp({dp}) = {micro * dp}"
        )
    elif config.parallel.vpp is not None and (batch // (micro * dp)) % config.parallel.pp:
        yield (
            f"parallel.vpp: {batch // (micro * dp)} micro-batches = global_batch_size({batch}) / "
            f"(micro_batch_size({micro}) * dp({dp})) are not a multiple of pp({config.parallel.pp})"
        )


def _schedule(config: RunConfig) -> Iterator[str]:
    optimizer, steps = config.optimizer, config.train.max_steps
    if optimizer.warmup_steps > steps:
        yield f"optimizer: warmup_steps({optimizer.warmup_steps}) > train.max_steps({steps})"
    elif optimizer.decay_steps is not None and optimizer.warmup_steps >= optimizer.decay_steps:
        yield (
            f"optimizer: warmup_steps({optimizer.warmup_steps}) >= "
            f"decay_steps({optimizer.decay_steps}): nothing is left to decay over"
        )
    has_valid = config.data.has_valid or config.data.valid_fraction > 0
    if config.train.eval_every is not None and not has_valid:
        yield (
            f"train.eval_every({config.train.eval_every}) needs data: set data.valid or "
            "data.valid_fraction"
        )


def _tensor(config: RunConfig, arch: Arch) -> Iterator[str]:
    tp = config.parallel.tp
    if tp == 1:
        return
    if arch.attention is not None:
        yield from _attention_heads(tp, arch.attention)
    if arch.mla is not None:
        yield from _multiple("parallel: mla heads", arch.mla.heads, "tp", tp)
    if arch.mlp is not None:
        yield from _multiple("parallel: mlp ffn_hidden_size", arch.mlp.ffn_hidden_size, "tp", tp)
    if arch.moe is not None and arch.moe.shared is not None:
        yield from _multiple(
            "parallel: shared expert ffn_hidden_size", arch.moe.shared.ffn_hidden_size, "tp", tp
        )
    if config.parallel.sequence_parallel:
        # Sequence parallel cuts the sequence between the tp ranks.
        yield from _multiple("train: seq_length", config.train.seq_length, "tp", tp)
    else:
        yield from _without_sequence_parallel(tp, arch)


def _attention_heads(tp: int, attention: Attention) -> Iterator[str]:
    heads, groups = attention.heads, attention.query_groups
    yield from _multiple("parallel: attention heads", heads, "tp", tp)
    if groups % tp and tp % groups:
        yield (
            f"parallel: query_groups({groups}) is neither a multiple nor a divisor of tp({tp}) "
            f"(tp({tp}) % query_groups({groups}) = {tp % groups})"
        )


def _without_sequence_parallel(tp: int, arch: Arch) -> Iterator[str]:
    mixers = {run.mixer for run in arch.layers}
    for mixer in _SEQUENCE_PARALLEL_MIXERS:
        if mixer in mixers:
            yield (
                f"parallel: {mixer} layers under tp({tp}) need sequence_parallel=true: without it "
                "their gradients are not summed over the tp ranks"
            )
    if arch.moe is not None:
        yield f"parallel: moe layers under tp({tp}) need sequence_parallel=true"


def _pipeline(config: RunConfig, arch: Arch) -> Iterator[str]:
    pp, vpp, layers = config.parallel.pp, config.parallel.vpp, arch.num_layers
    if vpp is not None and pp == 1:
        yield f"parallel: vpp({vpp}) needs pp > 1, found pp(1)"
    elif vpp is not None and layers % (pp * vpp):
        yield (
            f"parallel: layers({layers}) is not a multiple of pp({pp}) * vpp({vpp}) = {pp * vpp}"
        )
    elif vpp is None and layers % pp:
        yield f"parallel: layers({layers}) is not a multiple of pp({pp})"


def _experts(config: RunConfig, arch: Arch, world_size: int) -> Iterator[str]:
    ep, etp, pp = config.parallel.ep, config.parallel.etp, config.parallel.pp
    if arch.moe is None:
        for name, size in (("ep", ep), ("etp", etp)):
            if size > 1:
                yield f"parallel: {name}({size}) needs a model with experts; this one has none"
        return
    yield from _multiple("parallel: moe experts", arch.moe.experts, "ep", ep)
    yield from _multiple("parallel: expert ffn_hidden_size", arch.moe.ffn_hidden_size, "etp", etp)
    if world_size % (ep * etp * pp):
        yield (
            f"parallel: ep({ep}) * etp({etp}) * pp({pp}) = {ep * etp * pp} does not divide world "
            f"size {world_size}"
        )


def _positions(config: RunConfig, arch: Arch) -> Iterator[str]:
    length, limit = config.train.seq_length, arch.max_position_embeddings
    if arch.position.kind == "learned" and length > limit:
        yield (
            f"train: seq_length({length}) > max_position_embeddings({limit}), and the model has "
            "one learned vector per position"
        )


def _overlap(config: RunConfig) -> Iterator[str]:
    if not config.parallel.overlap_param_gather:
        return
    if not config.optimizer.distributed:
        yield "parallel.overlap_param_gather needs optimizer.distributed=true"
    if not config.parallel.overlap_grad_reduce:
        yield "parallel.overlap_param_gather needs parallel.overlap_grad_reduce=true"


def _multiple(name: str, size: int, divisor_name: str, divisor: int) -> Iterator[str]:
    if size % divisor:
        yield (
            f"{name}({size}) is not a multiple of {divisor_name}({divisor}): "
            f"{size} % {divisor} = {size % divisor}"
        )
