"""What a model computes at every layer, forward and backward, as one batch goes through it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch

from llm_train.model.build import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Values by point (`embedding`, `layer N`, `final norm`, `logits`), [B, T, width] in fp32.

    `gradients` are those of the mean token loss by these values; `loss` is that mean.
    """

    values: Mapping[str, torch.Tensor]
    gradients: Mapping[str, torch.Tensor]
    loss: float


def trace(chunk: Model, tokens: torch.Tensor, labels: torch.Tensor, *, gradients: bool) -> Trace:
    """One pass of a whole model (one rank) over tokens [B, T]; weights keep their gradients."""
    alive, values = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    with torch.set_grad_enabled(gradients), _watched(chunk, alive, values):
        losses = chunk(tokens, _positions(tokens), None, labels=labels)
        loss = losses.float().mean()
        if gradients:
            for value in alive.values():
                value.retain_grad()
            loss.backward()
    return Trace(
        values=values,
        gradients={
            name: _batch_first(value.grad)
            for name, value in alive.items()
            if value.grad is not None
        },
        loss=loss.item(),
    )


@torch.no_grad()
def layers_alone(
    chunk: Model, tokens: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """What each layer makes [B, T, hidden] of inputs [B, T, hidden] that are given to it."""
    outputs = list[torch.Tensor]()
    layers = list(chunk.decoder.layers)
    dtype = chunk.config.params_dtype

    def replace(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        given = inputs[layers.index(module)].transpose(0, 1)
        wanted = given.to(kwargs["hidden_states"].device, dtype).contiguous()
        return args, {**kwargs, "hidden_states": wanted}

    def record(_module: object, _args: object, out: Any) -> None:
        outputs.append(_batch_first(out[0]))

    handles = [layer.register_forward_pre_hook(replace, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(record) for layer in layers]
    try:
        chunk(tokens, _positions(tokens), None)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _positions(tokens: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device)[None].expand_as(tokens)


@contextmanager
def _watched(
    chunk: Model, alive: dict[str, torch.Tensor], values: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Note every point's tensor, and copy it at once: the loss is computed in the logits' place."""

    def note(name: str, value: torch.Tensor) -> None:
        alive[name], values[name] = value, _batch_first(value)

    def watch_input(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
        note("embedding", kwargs["hidden_states"])

    def watch_output(name: str) -> Callable[..., None]:
        def hook(_module: object, _args: object, out: Any) -> None:
            note(name, out[0] if isinstance(out, tuple) else out)

        return hook

    layers = list(chunk.decoder.layers)
    handles = [layers[0].register_forward_pre_hook(watch_input, with_kwargs=True)]
    points = {f"layer {index}": layer for index, layer in enumerate(layers)}
    points |= {
        "final norm": cast("torch.nn.Module", chunk.decoder.final_layernorm),
        "logits": chunk.output_layer,
    }
    handles += [module.register_forward_hook(watch_output(name)) for name, module in points.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batch_first(tensor: torch.Tensor) -> torch.Tensor:
    """A copy [B, T, width] of megatron-core's [T, B, width]."""
    return tensor.detach().transpose(0, 1).to("cpu", torch.float32, copy=True)
