"""What each backend of mamba2_scan takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import floating, together


def _any_device(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTGN: Tensor,
    c_BTGN: Tensor,
    d_H: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> str | None:
    if not x_BTHP.dim() == b_BTGN.dim() == 4 or c_BTGN.shape != b_BTGN.shape:
        return (
            f"x {tuple(x_BTHP.shape)}, b {tuple(b_BTGN.shape)}, c {tuple(c_BTGN.shape)}, "
            "want [B, T, H, P], [B, T, G, N], the same"
        )
    batch, tokens, heads, features = x_BTHP.shape
    groups, states = b_BTGN.shape[2:]
    if b_BTGN.shape[:2] != (batch, tokens) or not tokens:
        return f"x {tuple(x_BTHP.shape)} and b {tuple(b_BTGN.shape)}, want the same B and T > 0"
    if not groups or heads % groups:
        return f"{heads} heads are not a multiple of {groups} groups"
    wanted = (
        ("dt", dt_BTH, (batch, tokens, heads)),
        ("a", a_H, (heads,)),
        ("d", d_H, (heads,)),
        ("initial_state", initial_state, (batch, heads, features, states)),
    )
    for name, one, shape in wanted:
        if one is not None and one.shape != shape:
            return f"{name} of shape {tuple(one.shape)}, want {shape}"
    return floating("x", x_BTHP) or floating("b", b_BTGN) or together("x", x_BTHP, "b", b_BTGN)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device}
)
