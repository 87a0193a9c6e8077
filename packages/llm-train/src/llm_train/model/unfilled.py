"""Building a model without memory for its matrices, which are filled once they are shared out."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def unfilled_matrices() -> Iterator[None]:
    """Give parameters of two axes and more no storage (device `meta`) as soon as modules have them.

    Vectors keep what they are built with: that is how norms, biases and decays begin.
    """
    handle = register_module_parameter_registration_hook(_unfilled)  # pyright: ignore[reportArgumentType]  # what it returns is used
    try:
        yield
    finally:
        handle.remove()


def _unfilled(
    _module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter | None
) -> torch.nn.Parameter | None:
    if parameter is None or parameter.dim() < 2:
        return parameter
    return like(parameter, parameter.to("meta"))


def give_memory(
    module: torch.nn.Module, device: torch.device, *, but: Collection[torch.Tensor] = ()
) -> None:
    """Put a module on a device, its parameters without storage too, all but some of these."""
    left = {id(one) for one in but}
    if device.type != "cpu":
        module._apply(lambda one: one if one.is_meta else one.to(device))
    made: dict[int, torch.nn.Parameter] = {}
    for owner in list(module.modules()):
        for name, one in list(owner.named_parameters(recurse=False)):
            if not one.is_meta or id(one) in left:
                continue
            if id(one) not in made:
                made[id(one)] = like(one, torch.empty_like(one, device=device))
            setattr(owner, name, made[id(one)])


def like(parameter: torch.Tensor, data: torch.Tensor) -> torch.nn.Parameter:
    """Another parameter with the marks of this one (its layout, its gradients' groups)."""
    made = torch.nn.Parameter(data, requires_grad=parameter.requires_grad)
    vars(made).update(vars(parameter))
    return made
