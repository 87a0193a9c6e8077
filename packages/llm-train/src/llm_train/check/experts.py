"""Rules of mixture of experts and of expert parallelism."""

from __future__ import annotations

from collections.abc import Iterator

from llm_train.arch import Arch, Moe
from llm_train.check.multiple import multiple
from llm_train.config import Dispatcher, MoeConfig, Precision, RunConfig


def experts(config: RunConfig, arch: Arch, world_size: int) -> Iterator[str]:
    """Experts divide, and only models that have some are split by them."""
    if arch.moe is None:
        yield from _no_experts(config)
        return
    yield from _layout(config, arch.moe, world_size)
    yield from _capacity(config.moe, arch.moe)
    yield from _balance(config.moe, arch.moe)
    yield from _shared_expert(config.moe, arch.moe)
    yield from _grouped(config, arch, arch.moe)


def expert_notes(config: RunConfig) -> Iterator[str]:
    """Which product computes the experts, and whose tokens a capacity counts."""
    if config.moe.grouped_gemm and config.train.precision is Precision.BF16:
        yield "moe.grouped_gemm: experts by torch._grouped_mm on cpu and cuda, padded bmm on npu"
    elif config.moe.grouped_gemm:
        yield "moe.grouped_gemm: experts by padded torch.bmm (torch._grouped_mm takes bf16)"
    if config.moe.capacity_factor is not None:
        yield (
            "moe.capacity_factor counts the tokens of a rank's micro-batch: another layout or "
            "micro-batch size drops other tokens"
        )


def _no_experts(config: RunConfig) -> Iterator[str]:
    sizes = {"ep": config.parallel.ep, "etp": config.parallel.etp}
    for name, size in sizes.items():
        if size > 1:
            yield f"parallel: {name}({size}) needs a model with experts; this one has none"
    for name in sorted(config.moe.model_fields_set):
        yield f"moe.{name} needs a model with experts; this one has none"


def _layout(config: RunConfig, moe: Moe, world_size: int) -> Iterator[str]:
    ep, etp, pp, tp = (getattr(config.parallel, axis) for axis in ("ep", "etp", "pp", "tp"))
    yield from multiple("parallel: moe experts", moe.experts, "ep", ep)
    yield from multiple("parallel: expert ffn_hidden_size", moe.ffn_hidden_size, "etp", etp)
    if world_size % (ep * etp * pp):
        yield (
            f"parallel: ep({ep}) * etp({etp}) * pp({pp}) = {ep * etp * pp} does not divide world "
            f"size {world_size}"
        )
    if moe.bias and etp not in (1, tp):
        yield (
            f"parallel: etp({etp}) is neither 1 nor tp({tp}), and the experts have biases, whose "
            "share of the gradient norm would be counted wrongly"
        )


def _grouped(config: RunConfig, arch: Arch, moe: Moe) -> Iterator[str]:
    """Torch's grouped product takes matrices whose rows are whole multiples of 16 bytes."""
    if not config.moe.grouped_gemm or config.train.precision is not Precision.BF16:
        return
    etp = config.parallel.etp
    sizes = {
        f"hidden_size({arch.hidden_size})": arch.hidden_size,
        f"expert ffn_hidden_size({moe.ffn_hidden_size}) / etp({etp})": moe.ffn_hidden_size // etp,
    }
    for name, size in sizes.items():
        if size * 2 % 16:
            yield (
                f"moe.grouped_gemm: bytes of {name} in bf16({size * 2}) is not a multiple of 16: "
                f"{size * 2} % 16 = {size * 2 % 16}"
            )


def _capacity(config: MoeConfig, moe: Moe) -> Iterator[str]:
    factor = config.capacity_factor
    if factor is not None and moe.router.zero_experts:
        yield (
            f"moe.capacity_factor cannot be used with zero_experts({moe.router.zero_experts}): a "
            "token goes to no fixed number of experts that a capacity could be a share of"
        )
    if factor is None:
        for name in ("pad_to_capacity", "drop_policy"):
            if name in config.model_fields_set:
                yield f"moe.{name} needs moe.capacity_factor"
    elif config.pad_to_capacity and moe.top_k * factor > moe.experts:
        yield (
            f"moe.pad_to_capacity: top_k({moe.top_k}) * capacity_factor({factor}) = "
            f"{moe.top_k * factor:g} > experts({moe.experts}): a capacity beyond all tokens "
            "cannot be filled"
        )


def _balance(config: MoeConfig, moe: Moe) -> Iterator[str]:
    if "bias_update_rate" in config.model_fields_set and not moe.router.bias:
        yield "moe.bias_update_rate needs a router with expert biases; this model's has none"


def _shared_expert(config: MoeConfig, moe: Moe) -> Iterator[str]:
    if not config.shared_expert_overlap:
        return
    if moe.shared is None:
        yield "moe.shared_expert_overlap needs a shared expert; this model has none"
    if config.dispatcher is not Dispatcher.ALLTOALL:
        yield f"moe.shared_expert_overlap needs dispatcher=alltoall, found {config.dispatcher}"
    if moe.clamp is not None or moe.glu_offset:
        yield (
            f"moe.shared_expert_overlap computes no clamp({moe.clamp}) and "
            f"glu_offset({moe.glu_offset})"
        )
