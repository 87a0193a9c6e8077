"""What each backend of causal_conv1d takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.causal_conv1d.tiles import MAX_WIDTH
from llm_kernels_npu.ops.checks import NPU_FLOATS, floats_together, triton_floating

_ACTIVATIONS = (None, "silu")


def _any_device(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    activation: str | None = None,
) -> str | None:
    x_shape, weight_shape = x.shape, weight.shape
    if (
        len(x_shape) != 3
        or len(weight_shape) != 2
        or weight_shape[0] != x_shape[2]
        or 0 in weight_shape
    ):
        return (
            f"x of shape {tuple(x_shape)} and weight {tuple(weight_shape)}, "
            "want [B, T, C] and [C, W]"
        )
    if activation not in _ACTIVATIONS:
        return f"activation is {activation!r}, want None or 'silu'"
    channels, width = weight_shape
    if bias is not None and bias.shape != (channels,):
        return f"bias of shape {tuple(bias.shape)}, want {(channels,)}"
    if initial_state is not None:
        state_shape = (x_shape[0], width - 1, channels)
        if initial_state.shape != state_shape:
            return f"initial_state of shape {tuple(initial_state.shape)}, want {state_shape}"
    device = x.device
    if (
        x.dtype in NPU_FLOATS
        and weight.dtype in NPU_FLOATS
        and weight.device == device
        and (bias is None or (bias.dtype in NPU_FLOATS and bias.device == device))
        and (
            initial_state is None
            or (initial_state.dtype in NPU_FLOATS and initial_state.device == device)
        )
    ):
        return None
    return floats_together(
        ("x", x), ("weight", weight), ("bias", bias), ("initial_state", initial_state)
    )


def _triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    activation: str | None = None,
) -> str | None:
    reason = _any_device(x, weight, bias, initial_state, activation=activation)
    if reason is None and weight.shape[1] > MAX_WIDTH:
        return f"weight of shape {tuple(weight.shape)}, want at most {MAX_WIDTH} taps"
    return reason or triton_floating("x", x)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton}
)
