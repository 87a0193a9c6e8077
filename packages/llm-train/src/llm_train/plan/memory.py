"""Bytes that one rank of each pipeline stage needs, by kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from llm_train.arch import Arch
from llm_train.check import Layout
from llm_train.config import ContextParallel, Device, KeptType, ParallelConfig, Precision, RunConfig
from llm_train.placement import chunks
from llm_train.plan.activations import (
    again_bytes,
    head_bytes,
    layers_bytes,
    logits_bytes,
    prediction_bytes,
)
from llm_train.plan.adapters import saved_whole
from llm_train.plan.gathered import gathered_bytes
from llm_train.plan.layers import each_layer
from llm_train.plan.parameters import ADAPTED, QUANTIZED, Kind, Parameters
from llm_train.plan.shapes import FP32, Shapes

WIDTHS = {Precision.FP32: 4, Precision.BF16: 2, Precision.FP16: 2}
# Whether scales are quantised too → bytes a weight: 64 weights to a scale, 256 scales to a second.
NF4_BYTES = {False: 0.5 + 4 / 64, True: 0.5 + 1 / 64 + 4 / (64 * 256)}
KEPT_WIDTHS = {KeptType.FP32: 4, KeptType.BF16: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one rank. `activations` at the fullest moment, logits and their gradient apart.

    `gathered` is what a sharded model holds of whole layers at a time; `host` is what waits in host
    memory; it is not in the total.
    """

    weights: float
    gathered: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    host: float

    @property
    def total(self) -> float:
        """All together on the device."""
        return sum(asdict(self).values()) - self.host


def stage_memory(
    config: RunConfig,
    arch: Arch,
    layout: Layout,
    parameters: list[list[Parameters]],
    *,
    vocab_rows: int,
) -> list[Memory]:
    """One entry a stage. Alignment of buffers, and what kernels need for a moment, are left out."""
    width = WIDTHS[config.train.precision]
    shapes = Shapes(
        tokens=config.train.micro_batch_size * config.train.seq_length // config.parallel.cp,
        seq_length=config.train.seq_length,
        tp=config.parallel.tp,
        is_sequence_parallel=config.parallel.sequence_parallel and config.parallel.tp > 1,
        width=width,
        has_kernels=config.device in (Device.CUDA, Device.AUTO),
        cp=config.parallel.cp,
        exchange=_exchange(config.parallel),
        has_fused_mlp=config.lora is not None and config.lora.fused_mlp,
    )
    losses = 2 + (arch.mtp.layers if arch.mtp else 0)
    logits = losses * logits_bytes(shapes, vocab_rows=vocab_rows)
    if config.train.loss_chunk is not None:
        # Of one part at a time: nothing is kept.
        share = min(1.0, config.train.loss_chunk / shapes.tokens)
        logits = 2 * logits_bytes(shapes, vocab_rows=vocab_rows) * share
    found: list[Memory] = []
    for stage, held in enumerate(parameters):
        learned = learning(config, held)
        optimizer = _optimizer(config, layout, learned, width=width)
        is_offloaded = config.memory.offload_optimizer
        is_last = stage == config.parallel.pp - 1
        found.append(
            Memory(
                weights=_weights(config, layout, held, width=width),
                gathered=gathered_bytes(config, arch, held, stage=stage, width=width),
                gradients=_kept(config, layout, learned)
                * (FP32 if config.memory.gradients is KeptType.FP32 else width),
                optimizer=0.0 if is_offloaded else optimizer,
                activations=_activations(config, arch, layout, shapes, stage=stage),
                # The softmax that each loss keeps, and while it is made the logits beside it.
                logits=logits if is_last else 0.0,
                host=optimizer if is_offloaded else 0.0,
            )
        )
    return found


def learning(config: RunConfig, held: list[Parameters]) -> list[Parameters]:
    """Those that have gradients and a state of the optimizer."""
    frozen = config.optimizer.frozen
    found = [one.without(frozen) for one in held if not _is_frozen(config, one)]
    return found + _saved(config, held)


def _saved(config: RunConfig, held: list[Parameters]) -> list[Parameters]:
    """Parameters of a base that train whole beside adapters."""
    patterns = () if config.lora is None else config.lora.modules_to_save
    return [saved_whole(one, patterns) for one in held] if patterns else []


def _exchange(parallel: ParallelConfig) -> int | None:
    """All ranks' keys and values at once, or as many as a rank has, of fewer heads."""
    if parallel.cp > 1 and parallel.cp_kind is ContextParallel.ALLGATHER:
        return parallel.cp
    return 1 if parallel.ulysses_degree > 1 else None


def chunks_in_flight(config: RunConfig, micro_batches: int, stage: int) -> int:
    """Micro-batches a stage has forwarded and not yet brought back, times its chunks.

    One forward one backward: as many as there are stages from this one on. Interleaved: the
    warm-up of megatron-core's schedule, 2 · (pp − 1 − stage) + (vpp − 1) · pp, and one.
    """
    pp, vpp = config.parallel.pp, config.parallel.vpp
    if vpp is None:
        return min(micro_batches, pp - stage)
    return min(micro_batches * vpp, 2 * (pp - 1 - stage) + (vpp - 1) * pp + 1)


def _is_frozen(config: RunConfig, one: Parameters) -> bool:
    """None of it trains, whatever `optimizer.frozen` says."""
    if config.lora is not None:
        return one.kind not in ADAPTED
    return one.kind is Kind.INDEXER and config.train.indexer_loss_coeff == 0.0


def _weights(config: RunConfig, layout: Layout, held: list[Parameters], *, width: int) -> float:
    """Bytes of them between steps; what a sharded model trains is kept as masters, in fp32.

    What is in four bits is whole on every rank that computes with it.
    """
    quantized = 0.0
    if config.lora is not None and config.lora.quantize is not None:
        weights = sum(one.local for one in held if one.kind in QUANTIZED)
        quantized = weights * NF4_BYTES[config.lora.double_quantize]
        held = [one for one in held if one.kind not in QUANTIZED]
    if not config.parallel.fsdp:
        return _kept(config, layout, held) * width + quantized
    masters = [one for one in held if config.lora is None or one.kind in ADAPTED]
    frozen = [one for one in held if one not in masters]
    masters_bytes = _kept(config, layout, masters) * FP32
    saved = _kept(config, layout, _saved(config, held)) * (FP32 - width)
    return masters_bytes + _kept(config, layout, frozen) * width + saved + quantized


def _kept(config: RunConfig, layout: Layout, held: list[Parameters]) -> float:
    """Parameters that a rank keeps between steps: all it computes with, or its rows of them."""
    if config.parallel.fsdp:
        return _shared_out(config, layout, held)
    return sum(one.local for one in held)


def _optimizer(config: RunConfig, layout: Layout, held: list[Parameters], *, width: int) -> float:
    """Adam's two moments, and masters of 2-byte weights; spread over dp or not."""
    each = 2 * KEPT_WIDTHS[config.memory.optimizer_state]
    if config.parallel.fsdp:
        return _shared_out(config, layout, held) * each  # the weights are the masters
    if width < FP32 and config.memory.master_weights is KeptType.FP32:
        each += FP32 // 2 if config.memory.reuse_parameter_copy else FP32
    if not config.optimizer.distributed:
        return sum(one.local for one in held) * each
    return _shared_out(config, layout, held) * each


def _shared_out(config: RunConfig, layout: Layout, held: list[Parameters]) -> float:
    """One rank's share of what ranks with the same weights divide among them."""
    # Ranks that share a sequence hold the same weights.
    copies = layout.dp * config.parallel.cp
    dense = sum(one.local for one in held if not one.is_expert) / copies
    experts = sum(one.local for one in held if one.is_expert) / layout.expert_dp
    return dense + experts


def _activations(
    config: RunConfig, arch: Arch, layout: Layout, shapes: Shapes, *, stage: int
) -> float:
    layers = each_layer(arch)
    runs = [
        [layers[index] for index in chunk.layers]
        for chunk in chunks(config.parallel, arch.num_layers)
        if chunk.stage == stage
    ]
    in_flight = chunks_in_flight(config, layout.micro_batches, stage)
    # A virtual pipeline's chunks take turns; count its mean chunk as often as one is in flight.
    kept = sum(layers_bytes(arch, one, shapes, config.recompute) for one in runs) / len(runs)
    again = max(again_bytes(arch, one, shapes, config.recompute) for one in runs)
    head = 0.0
    if stage == config.parallel.pp - 1:
        head = head_bytes(arch, shapes, vocab_rows=0)
        head += prediction_bytes(arch, shapes, config.recompute)
    return in_flight * kept + again + head
