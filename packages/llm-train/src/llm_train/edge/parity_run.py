"""`llm-train parity`: one batch through transformers' model and through ours, point by point."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llm_train.arch import Arch
from llm_train.config import ParallelConfig, Precision
from llm_train.edge.device import DeviceKind, device_session, resolve
from llm_train.edge.groups import model_parallel
from llm_train.edge.quiet import quiet_libraries
from llm_train.interfaces import WeightSource
from llm_train.model.fields import config_fields
from llm_train.parity import Comparison, Point, Weight
from llm_train.weights import arch_of, open_source

if TYPE_CHECKING:
    import torch

    from llm_train.model.build import Model
    from llm_train.model.probes import Trace

TOLERANCES: Mapping[Precision, float] = {
    Precision.FP32: 1e-4,
    Precision.BF16: 1e-1,
    Precision.FP16: 2e-2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is compared: random tokens [batch, tokens], in which type, on which device."""

    precision: Precision
    device: str
    batch: int
    tokens: int
    seed: int
    tolerance: float | None
    has_gradients: bool


def compare(folder: Path, options: Options) -> Comparison:
    """Run the model of a Hugging Face folder both ways on one rank.

    transformers goes first and is let go of before ours is built; its gradients lie in a temporary
    folder meanwhile, twice the size of the model. Raises WeightsError, UnsupportedArchError,
    ParityError or DeviceError.
    """
    source = open_source(folder)
    arch = arch_of(source, where=folder)
    config_fields(arch)  # refuses what we cannot build before transformers runs it
    kind = resolve(options.device)
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="llm-train-parity-") as temporary:
        # Before torch is made ready for megatron-core: it must be transformers as it is.
        tokens, labels, wanted = _reference(folder, arch, options, kind, Path(temporary))
        _say("loading megatron-core ...")
        with device_session(kind) as device, model_parallel(ParallelConfig(), seed=options.seed):
            from llm_train.model.probes import layers_alone, trace

            _say("running ours ...")
            chunk = _ours(arch, source, options, device)
            tokens, labels = tokens.to(device), labels.to(device)
            found = trace(chunk, tokens, labels, gradients=options.has_gradients)
            weights = _weights(chunk, Path(temporary)) if options.has_gradients else {}
            names = ["embedding", *(f"layer {index}" for index in range(arch.num_layers))]
            alone = layers_alone(chunk, tokens, [wanted.values[name] for name in names[:-1]])
    return Comparison(
        points=tuple(_points(found, wanted, dict(zip(names[1:], alone, strict=True)), weights)),
        loss=found.loss,
        wanted_loss=wanted.loss,
        tolerance=options.tolerance or TOLERANCES[options.precision],
    )


def _reference(
    folder: Path, arch: Arch, options: Options, kind: DeviceKind, temporary: Path
) -> tuple[torch.Tensor, torch.Tensor, Trace]:
    """Tokens [B, T], the tokens that follow them, and what transformers makes of both."""
    import torch

    from llm_train.edge.parity_reference import ParityError, Reference
    from llm_train.train.precision import DTYPES

    if arch.moe is not None and arch.moe.router.zero_experts:
        raise ParityError(
            f"{folder}: parity cannot follow moe.router.zero_experts="
            f"{arch.moe.router.zero_experts}: transformers loads no folder without weights for "
            "them, and none is published with any"
        )
    _say("running transformers ...")
    device, dtype = torch.device(kind.value), DTYPES[options.precision]
    reference = Reference(
        folder,
        num_layers=arch.num_layers,
        is_split=_is_split(arch),
        dtype=dtype,
        device=device,
    )
    tokens = _random_tokens(arch.vocab_size, options, avoided=reference.padding_id).to(device)
    tokens, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    wanted = reference.trace(tokens, labels, gradients=options.has_gradients)
    if options.has_gradients:
        reference.save_gradients(temporary / "gradients", zeroed=False)
        reference.save_gradients(temporary / "zeros", zeroed=True)
    return tokens, labels, wanted


def _is_split(arch: Arch) -> bool:
    """Whether layers with a mixer alone and with a feed-forward alone take turns."""
    has_mixer = [layer.mixer != "none" for layer in arch.each_layer()]
    has_feed_forward = [layer.feed_forward != "none" for layer in arch.each_layer()]
    turns = [index % 2 == 0 for index in range(arch.num_layers)]
    return has_mixer == turns and has_feed_forward == [not turn for turn in turns]


def _random_tokens(vocab_size: int, options: Options, *, avoided: int | None) -> torch.Tensor:
    """[B, T + 1] ids."""
    import torch

    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch, options.tokens + 1)
    if avoided is None:
        return torch.randint(0, vocab_size, shape, generator=generator)
    others = torch.randint(0, vocab_size - 1, shape, generator=generator)
    return others + (others >= avoided)


def _ours(arch: Arch, source: WeightSource, options: Options, device: torch.device) -> Model:
    from llm_train.model.build import build_chunks, padded_vocab_size, transformer_config
    from llm_train.model.fill import fill_from_source
    from llm_train.train.precision import DTYPES

    config = transformer_config(arch, ParallelConfig(), dtype=DTYPES[options.precision])
    (chunk,) = build_chunks(arch, config)
    chunk.to(device)
    fill_from_source([chunk], source, padded_rows=padded_vocab_size(arch, 1))
    return chunk.eval()


def _weights(chunk: Model, temporary: Path) -> dict[str, Weight]:
    """The worst weight gradient that belongs to each point.

    transformers' gradients are read as weights are: what turns its weights into ours is linear up
    to a constant, which is what it makes of zeros.
    """
    from llm_train.model.names import PREDICTION, named_tensors

    gradients, zeros = open_source(temporary / "gradients"), open_source(temporary / "zeros")
    worst: dict[str, Weight] = {}
    for named in named_tensors(chunk):
        # transformers has no prediction layers, and the main model's loss does not reach ours.
        if not named.tensor.requires_grad or named.name.startswith(PREDICTION):
            continue
        wanted = gradients.read(named.name).float() - zeros.read(named.name).float()
        grad = named.tensor.grad
        found = wanted.new_zeros(wanted.shape) if grad is None else grad.float().cpu()
        difference = _difference(found, wanted)
        point = _point_of(named.name)
        if point not in worst or not difference <= worst[point].difference:
            worst[point] = Weight(name=named.name, difference=difference)
    return worst


def _point_of(name: str) -> str:
    if name.startswith("decoder.layers."):
        return f"layer {name.split('.')[2]}"
    ends = {"embedding": "embedding", "decoder": "final norm"}
    return ends.get(name.partition(".")[0], "logits")


def _points(
    found: Trace,
    wanted: Trace,
    alone: Mapping[str, torch.Tensor],
    weights: Mapping[str, Weight],
) -> Iterator[Point]:
    for name, value in found.values.items():
        has_gradient = name in found.gradients and name in wanted.gradients
        yield Point(
            name=name,
            forward=_difference(value, wanted.values[name]),
            alone=_difference(alone[name], wanted.values[name]) if name in alone else None,
            gradient=_difference(found.gradients[name], wanted.gradients[name])
            if has_gradient
            else None,
            weight=weights.get(name),
        )


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value wanted."""
    largest = wanted.abs().max().item()
    difference = (found - wanted).abs().max().item()
    return difference / largest if largest > 0.0 else difference


def _say(text: str) -> None:
    click.echo(text, err=True)
