"""What each backend of gated_delta_rule takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import floating, together


def _any_device(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTH: Tensor,
    beta_BTH: Tensor,
    initial_state: Tensor | None = None,
    *,
    scale: float | None = None,
) -> str | None:
    del scale
    if not q_BTGK.dim() == v_BTHV.dim() == 4 or k_BTGK.shape != q_BTGK.shape:
        return (
            f"q {tuple(q_BTGK.shape)}, k {tuple(k_BTGK.shape)}, v {tuple(v_BTHV.shape)}, "
            "want [B, T, G, K], the same, [B, T, H, V]"
        )
    batch, tokens, heads, value_dim = v_BTHV.shape
    groups, key_dim = q_BTGK.shape[2:]
    if q_BTGK.shape[:2] != (batch, tokens) or not tokens:
        return f"q {tuple(q_BTGK.shape)} and v {tuple(v_BTHV.shape)}, want the same B and T > 0"
    if not groups or heads % groups:
        return f"{heads} value heads are not a multiple of {groups} key heads"
    for name, one in (("log_decay", log_decay_BTH), ("beta", beta_BTH)):
        if one.shape != (batch, tokens, heads):
            return f"{name} of shape {tuple(one.shape)}, want {(batch, tokens, heads)}"
    state_shape = (batch, heads, key_dim, value_dim)
    if initial_state is not None and initial_state.shape != state_shape:
        return f"initial_state of shape {tuple(initial_state.shape)}, want {state_shape}"
    return floating("q", q_BTGK) or floating("v", v_BTHV) or together("q", q_BTGK, "v", v_BTHV)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device}
)
