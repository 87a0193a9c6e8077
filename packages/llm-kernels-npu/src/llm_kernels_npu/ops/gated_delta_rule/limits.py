"""What each backend of gated_delta_rule takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import NPU_FLOATS, floats_together, triton_floating
from llm_kernels_npu.ops.recurrence_tiles import MAX_DIM


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
    q_shape, v_shape = q_BTGK.shape, v_BTHV.shape
    if len(q_shape) != 4 or len(v_shape) != 4 or k_BTGK.shape != q_shape:
        return (
            f"q {tuple(q_shape)}, k {tuple(k_BTGK.shape)}, v {tuple(v_shape)}, "
            "want [B, T, G, K], the same, [B, T, H, V]"
        )
    batch, tokens, heads, value_dim = v_shape
    query_batch, queries, groups, key_dim = q_shape
    if query_batch != batch or queries != tokens or not tokens:
        return f"q {tuple(q_shape)} and v {tuple(v_shape)}, want the same B and T > 0"
    if not key_dim:
        return f"q of shape {tuple(q_shape)} has no features"
    if not groups or heads % groups:
        return f"{heads} value heads are not a multiple of {groups} key heads"
    gate_shape = (batch, tokens, heads)
    if log_decay_BTH.shape != gate_shape:
        return f"log_decay of shape {tuple(log_decay_BTH.shape)}, want {gate_shape}"
    if beta_BTH.shape != gate_shape:
        return f"beta of shape {tuple(beta_BTH.shape)}, want {gate_shape}"
    if initial_state is not None:
        state_shape = (batch, heads, key_dim, value_dim)
        if initial_state.shape != state_shape:
            return f"initial_state of shape {tuple(initial_state.shape)}, want {state_shape}"
    if (
        q_BTGK.dtype in NPU_FLOATS
        and k_BTGK.dtype in NPU_FLOATS
        and v_BTHV.dtype in NPU_FLOATS
        and log_decay_BTH.dtype in NPU_FLOATS
        and beta_BTH.dtype in NPU_FLOATS
        and (
            (
                q_BTGK.is_cpu
                and k_BTGK.is_cpu
                and v_BTHV.is_cpu
                and log_decay_BTH.is_cpu
                and beta_BTH.is_cpu
            )
            or q_BTGK.device
            == k_BTGK.device
            == v_BTHV.device
            == log_decay_BTH.device
            == beta_BTH.device
        )
        and (
            initial_state is None
            or (initial_state.dtype in NPU_FLOATS and initial_state.device == q_BTGK.device)
        )
    ):
        return None
    return floats_together(
        ("q", q_BTGK),
        ("k", k_BTGK),
        ("v", v_BTHV),
        ("log_decay", log_decay_BTH),
        ("beta", beta_BTH),
        ("initial_state", initial_state),
    )


def _triton(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTH: Tensor,
    beta_BTH: Tensor,
    initial_state: Tensor | None = None,
    *,
    scale: float | None = None,
) -> str | None:
    reason = _any_device(
        q_BTGK, k_BTGK, v_BTHV, log_decay_BTH, beta_BTH, initial_state, scale=scale
    )
    if reason is not None:
        return reason
    key_dim, value_dim = q_BTGK.shape[-1], v_BTHV.shape[-1]
    if key_dim > MAX_DIM or value_dim > MAX_DIM:
        return f"keys of {key_dim} features, values of {value_dim}, want at most {MAX_DIM} of each"
    return triton_floating("q", q_BTGK) or triton_floating("v", v_BTHV)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "torch": _any_device, "triton": _triton}
)
