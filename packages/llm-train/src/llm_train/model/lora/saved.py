"""Modules of the base that train whole beside adapters: PEFT's `modules_to_save`."""

from collections.abc import Iterator, Sequence

import torch

from llm_train.config import LoraConfig
from llm_train.model.build import Model
from llm_train.model.lora.attach import TargetError, has_adapter, matches, refuse_unknown
from llm_train.model.lora.quantized import quantized_linears
from llm_train.model.names import ADAPTERS, EXPERTS, INDEXER, PREDICTION, global_name
from llm_train.model.unfilled import like


def let_saved_train(chunks: Sequence[Model], lora: LoraConfig, *, dtype: torch.dtype) -> None:
    """Let what `lora.modules_to_save` names learn, in `dtype`; every rank calls it.

    After adapters are attached, before weights have values. Raises TargetError for what is not
    there, is adapted too or is to be quantised.
    """
    if not lora.modules_to_save:
        return
    names = {name for chunk in chunks for name, _ in _modules(chunk)}
    refuse_unknown("lora.modules_to_save", lora.modules_to_save, names, kind="modules")
    for chunk in chunks:
        is_nf4 = lora.quantize is not None
        quantized = {id(one) for one in quantized_linears(chunk)} if is_nf4 else set[int]()
        for name, module in list(_modules(chunk)):
            if not any(matches(name, pattern) for pattern in lora.modules_to_save):
                continue
            if has_adapter(module) or id(module) in quantized:
                other = "lora.target_modules" if has_adapter(module) else "lora.quantize"
                raise TargetError(f"lora.modules_to_save: {name} is of {other} too; want one")
            for own, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, own, like(parameter, parameter.to(dtype)).requires_grad_())


def _modules(chunk: Model) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every module with parameters of its own, by its name in the whole model."""
    for local, module in chunk.named_modules():
        inside = f"{local}."
        if inside.startswith(PREDICTION) or any(
            at in f".{inside}" for at in (EXPERTS, INDEXER, *ADAPTERS)
        ):
            continue
        if any(True for _ in module.parameters(recurse=False)):
            yield global_name(chunk, f"{local}.weight").removesuffix(".weight"), module
