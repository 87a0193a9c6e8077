"""The native decoder over any folder that a weight provider opens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_infer.arch import Arch, parse
from llm_infer.compiled.kernels import CompiledKernels
from llm_infer.edge import device as devices
from llm_infer.edge.choices import LoadOptions
from llm_infer.edge.operators import AUTO, COMPILED, resolve
from llm_infer.engines.native import BLOCK_TOKENS
from llm_infer.errors import InferError
from llm_infer.kernels import Kernels
from llm_infer.model.decoder import Decoder, kept_weights, place_of
from llm_infer.model.group import ALONE, Group
from llm_infer.model.int8 import reason_against as reason_against_int8
from llm_infer.model.linear import can_pack
from llm_infer.model.rope import context_of
from llm_infer.model.static_step import CudaGraphs, Recorder
from llm_infer.model.static_step import reason_against as reason_against_replay
from llm_infer.rope_override import with_rope_scaling
from llm_infer.weights import Quantization, WeightSource, required_provider


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderPlan:
    """All that a decoder is made of."""

    arch: Arch
    source: WeightSource
    kernels: Kernels
    device: torch.device
    dtype: torch.dtype
    is_as_stored: bool
    """Whether weights keep the numbers they are stored as."""
    quantization: Quantization | None
    recorder: Recorder | None
    group: Group

    @property
    def place(self) -> str:
        """See `Model.place`."""
        kept = kept_weights(self.source, self.kernels, self.dtype, self.quantization)
        return place_of(self.device, kept)

    def read(self) -> Decoder:
        """The decoder, with the weights of its rank on their device."""
        try:
            return Decoder(
                self.arch,
                self.source,
                self.kernels,
                device=self.device,
                dtype=self.dtype,
                context=context_of(self.arch),
                block_tokens=BLOCK_TOKENS,
                quantization=self.quantization,
                recorder=self.recorder,
                group=self.group,
            )
        except ValueError as error:
            # How a weight provider refuses.
            raise InferError(str(error)) from error


def open_source(folder: Path, adapter: Path | None) -> WeightSource:
    """The weights under `folder`, with an adapter merged in."""
    open_weights = required_provider(folder)
    try:
        return open_weights(folder, adapter=adapter)
    except ValueError as error:
        raise InferError(str(error)) from error


def arch_of(source: WeightSource, folder: Path, options: LoadOptions) -> Arch:
    """The model's facts, with the context that the options want."""
    document: Mapping[str, object] = source.arch
    if options.rope_scaling is not None:
        document = with_rope_scaling(document, options.rope_scaling)
    return parse(document, where=f"{folder} (arch.json)")


def plan_of(
    arch: Arch, source: WeightSource, options: LoadOptions, *, group: Group = ALONE
) -> DecoderPlan:
    """What the options say of a rank's decoder."""
    device = torch.device(devices.of_rank(devices.resolve(options.device), group.rank))
    stored = source.dtype("embedding.word_embeddings.weight")
    kernels, dtype = _kernels_and_dtype(options, device, stored)
    # Compiled operators bring products of their own.
    if options.quantization is not None and not isinstance(kernels, CompiledKernels):
        reason = reason_against_int8(device)
        if reason is not None:
            raise InferError(f"--quantization {options.quantization}: {reason}")
    return DecoderPlan(
        arch=arch,
        source=source,
        kernels=kernels,
        device=device,
        dtype=dtype,
        is_as_stored=options.quantization is None
        and (dtype == stored or isinstance(kernels, CompiledKernels)),
        quantization=options.quantization,
        # Steps of several ranks are not recorded.
        recorder=_recorder(arch, device) if options.cuda_graphs and group.size == 1 else None,
        group=group,
    )


def _kernels_and_dtype(
    options: LoadOptions, device: torch.device, stored: torch.dtype
) -> tuple[Kernels, torch.dtype]:
    """Operators, and the number type that they compute in.

    Compiled ones read weights as they are stored and compute in float32: faster on a CPU than in 16
    bits, and exact.
    """
    if options.dtype != "auto":
        dtype = getattr(torch, options.dtype)
        return resolve(options.kernels, device=device.type, dtype=dtype), dtype
    if options.kernels in (AUTO, COMPILED):
        kernels = resolve(options.kernels, device=device.type, dtype=torch.float32)
        if isinstance(kernels, CompiledKernels):
            return kernels, torch.float32
    # Without oneDNN's layout products in 16 bits take ten times as long.
    dtype = torch.float32 if device.type == "cpu" and not can_pack(stored) else stored
    return resolve(options.kernels, device=device.type, dtype=dtype), dtype


def _recorder(arch: Arch, device: torch.device) -> Recorder | None:
    """What replays steps there; None where they are computed one by one."""
    if device.type != "cuda" or reason_against_replay(arch) is not None:
        return None
    return CudaGraphs()
