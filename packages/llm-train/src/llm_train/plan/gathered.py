"""Bytes of the whole layers that a sharded model (FSDP2) holds for a moment beside its rows."""

from __future__ import annotations

from llm_train.arch import Arch
from llm_train.config import RunConfig
from llm_train.placement import chunks
from llm_train.plan.layers import each_layer
from llm_train.plan.parameters import (
    QUANTIZED,
    Kind,
    Parameters,
    layer_parameters,
    prediction_parameters,
)
from llm_train.plan.shapes import FP32


def gathered_bytes(
    config: RunConfig, arch: Arch, held: list[Parameters], *, stage: int, width: int
) -> float:
    """Where most of them are there at once; 0 without `parallel.fsdp`.

    While backward computes the largest layer, the next one is on its way; its gradients are there,
    and in fp32 what is summed of them (those of adapters, which are few, are left out). Embeddings
    that are used in two places are there all along.
    """
    if not config.parallel.fsdp:
        return 0.0
    layers = _layers(config, arch, stage)
    ends = [one.local for one in held if one.kind in (Kind.EMBEDDING, Kind.HEAD)]
    is_shared = arch.tie_embeddings or arch.mtp is not None
    root = sum(ends) if is_shared else 0
    largest = max([0, *layers, *(() if is_shared else ends)])
    if config.parallel.fsdp_reshard_after_forward:
        waiting = largest
    else:
        waiting = sum(layers) - max([0, *layers])
    gradients = width + FP32 if config.lora is None else 0
    return float((root + largest) * (width + gradients) + waiting * width)


def _layers(config: RunConfig, arch: Arch, stage: int) -> list[int]:
    """Parameters of each layer of a stage that are cut, on a rank."""
    every, parallel = each_layer(arch), config.parallel
    found = [
        layer_parameters(arch, every[index], parallel, at=f"decoder.layers.{index}")
        for chunk in chunks(parallel, arch.num_layers)
        if chunk.stage == stage
        for index in chunk.layers
    ]
    if arch.mtp is not None and stage == parallel.pp - 1:
        found += [
            prediction_parameters(arch, parallel, at=f"mtp.layers.{index}")
            for index in range(arch.mtp.layers)
        ]
    is_quantized = config.lora is not None and config.lora.quantize is not None
    left_out = QUANTIZED if is_quantized else ()
    return [sum(one.local for one in layer if one.kind not in left_out) for layer in found]
