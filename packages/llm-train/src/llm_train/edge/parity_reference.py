"""The model of a Hugging Face folder as transformers runs it: the reference of `parity`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from llm_train.model.probes import Trace


class ParityError(RuntimeError):
    """transformers cannot run the model, or not in a way that can be followed."""


class Reference:
    """transformers' own model of a folder, in `dtype` on `device`, with plain attention.

    `is_split`: each of our `num_layers` layers has one block, of which transformers may have two
    in a layer of its own.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_layers: int,
        is_split: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        try:
            from transformers import AutoModelForCausalLM
        except ImportError:
            raise ParityError(
                "parity needs transformers: pip install 'llm-train[parity]'"
            ) from None
        self.folder = folder
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", local_files_only=True
        )
        self.model.to(device).eval()
        counts = (num_layers, num_layers // 2) if is_split else (num_layers,)
        self.decoder, self.layers = _layers(self.model, counts, folder)
        self.ours_per_layer = num_layers // len(self.layers)
        self.padding_id: int | None = self.model.get_input_embeddings().padding_idx

    def trace(self, tokens: torch.Tensor, labels: torch.Tensor, *, gradients: bool) -> Trace:
        """One pass over tokens [B, T]; weights keep their gradients.

        `padding_id` should not be among the tokens: its row has no gradient here.
        """
        alive = dict[str, torch.Tensor]()
        with torch.set_grad_enabled(gradients), self._watched(alive):
            logits = self.model(input_ids=tokens, use_cache=False).logits
            alive["logits"] = logits
            loss = F.cross_entropy(logits.float().transpose(1, 2), labels)
            if gradients:
                for value in alive.values():
                    value.retain_grad()
                loss.backward()
        return Trace(
            values={name: _copy(value) for name, value in alive.items()},
            gradients={
                name: _copy(value.grad) for name, value in alive.items() if value.grad is not None
            },
            loss=loss.item(),
        )

    def save_gradients(self, folder: Path, *, zeroed: bool) -> None:
        """Write the weights' gradients (or zeros) as if they were weights, under their names."""
        state = {
            name: torch.zeros_like(value) if zeroed else _gradient(value)
            for name, value in self.model.state_dict(keep_vars=True).items()
        }
        with _no_bars():
            self.model.save_pretrained(folder, state_dict=state)
        shutil.copyfile(self.folder / "config.json", folder / "config.json")

    @contextmanager
    def _watched(self, alive: dict[str, torch.Tensor]) -> Iterator[None]:
        def input_of(name: str) -> Callable[..., None]:
            def hook(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                alive[name] = args[0] if args else kwargs["hidden_states"]

            return hook

        def output_of(name: str) -> Callable[..., None]:
            def hook(_module: object, _args: object, out: Any) -> None:
                alive[name] = out[0] if isinstance(out, tuple) else out

            return hook

        first = self.layers[0]
        handles = [first.register_forward_pre_hook(input_of("embedding"), with_kwargs=True)]
        for index, layer in enumerate(self.layers):
            last = self.ours_per_layer * (index + 1) - 1
            if self.ours_per_layer > 1:
                # What the first block made goes into the norm of the second.
                between = input_of(f"layer {last - 1}")
                handles.append(
                    _norms(layer)[-1].register_forward_pre_hook(between, with_kwargs=True)
                )
            handles.append(layer.register_forward_hook(output_of(f"layer {last}")))
        final = _norms(self.decoder)[-1:]
        handles += [one.register_forward_hook(output_of("final norm")) for one in final]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _norms(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Norms that a module has itself, in the order it names them."""
    return [one for one in module.children() if "norm" in type(one).__name__.lower()]


def _layers(
    model: torch.nn.Module, counts: Sequence[int], folder: Path
) -> tuple[torch.nn.Module, torch.nn.ModuleList]:
    """The decoder and its layers: the first list of modules that is as long as one of `counts`."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
    }
    for count, (name, module) in product(counts, lists.items()):
        if len(module) == count:
            return model.get_submodule(name.rpartition(".")[0]), module
    found = ", ".join(f"{name} ({len(module)})" for name, module in list(lists.items())[:5])
    raise ParityError(
        f"{folder}: no list of {counts[0]} layers in transformers' {type(model).__name__}; "
        f"found {found or 'no lists'}"
    )


@contextmanager
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _gradient(value: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad.detach()


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
