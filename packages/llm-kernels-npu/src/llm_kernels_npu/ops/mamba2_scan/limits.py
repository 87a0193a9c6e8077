"""What each backend of mamba2_scan takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import NPU_FLOATS, floats_together, triton_floating
from llm_kernels_npu.ops.recurrence_tiles import MAX_DIM


def _any_device(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    d_H: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> str | None:
    x_shape, b_shape = x_BTHP.shape, b_BTGN.shape
    if not len(x_shape) == len(b_shape) == 4 or c_BTGN.shape != b_shape:
        return (
            f"x {tuple(x_shape)}, b {tuple(b_shape)}, c {tuple(c_BTGN.shape)}, "
            "want [B, T, H, P], [B, T, G, N], the same"
        )
    batch, tokens, heads, features = x_shape
    b_batch, b_tokens, groups, states = b_shape
    if b_batch != batch or b_tokens != tokens or not tokens:
        return f"x {tuple(x_shape)} and b {tuple(b_shape)}, want the same B and T > 0"
    if not groups or heads % groups:
        return f"{heads} heads are not a multiple of {groups} groups"
    if dt_BTH.shape != (batch, tokens, heads):
        return f"dt of shape {tuple(dt_BTH.shape)}, want {(batch, tokens, heads)}"
    if a_H.shape != (heads,):
        return f"a of shape {tuple(a_H.shape)}, want {(heads,)}"
    if d_H is not None and d_H.shape != (heads,):
        return f"d of shape {tuple(d_H.shape)}, want {(heads,)}"
    if initial_state is not None:
        state_shape = (batch, heads, features, states)
        if initial_state.shape != state_shape:
            return f"initial_state of shape {tuple(initial_state.shape)}, want {state_shape}"
    if (
        x_BTHP.dtype in NPU_FLOATS
        and dt_BTH.dtype in NPU_FLOATS
        and a_H.dtype in NPU_FLOATS
        and b_BTGN.dtype in NPU_FLOATS
        and c_BTGN.dtype in NPU_FLOATS
        and (
            (x_BTHP.is_cpu and dt_BTH.is_cpu and a_H.is_cpu and b_BTGN.is_cpu and c_BTGN.is_cpu)
            or x_BTHP.device == dt_BTH.device == a_H.device == b_BTGN.device == c_BTGN.device
        )
        and (d_H is None or (d_H.dtype in NPU_FLOATS and d_H.device == x_BTHP.device))
        and (
            initial_state is None
            or (initial_state.dtype in NPU_FLOATS and initial_state.device == x_BTHP.device)
        )
    ):
        return None
    return floats_together(
        ("x", x_BTHP),
        ("dt", dt_BTH),
        ("a", a_H),
        ("b", b_BTGN),
        ("c", c_BTGN),
        ("d", d_H),
        ("initial_state", initial_state),
    )


def _triton(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    d_H: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> str | None:
    reason = _any_device(x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, d_H, initial_state)
    if reason is not None:
        return reason
    features, states = x_BTHP.shape[-1], b_BTGN.shape[-1]
    if features > MAX_DIM or states > MAX_DIM:
        return f"{features} features and {states} states, want at most {MAX_DIM} of each"
    return triton_floating("x", x_BTHP) or triton_floating("b", b_BTGN)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton}
)
