"""What each backend of causal_conv1d takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import floating, together

_ACTIVATIONS = (None, "silu")


def _any_device(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    activation: str | None = None,
) -> str | None:
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[2] or not weight.numel():
        return (
            f"x of shape {tuple(x.shape)} and weight {tuple(weight.shape)}, "
            "want [B, T, C] and [C, W]"
        )
    if activation not in _ACTIVATIONS:
        return f"activation is {activation!r}, want None or 'silu'"
    channels, width = weight.shape
    wanted = {"bias": (channels,), "initial_state": (x.shape[0], width - 1, channels)}
    for name, given in (("bias", bias), ("initial_state", initial_state)):
        if given is not None and given.shape != wanted[name]:
            return f"{name} of shape {tuple(given.shape)}, want {wanted[name]}"
    return floating("x", x) or floating("weight", weight) or together("x", x, "weight", weight)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device}
)
