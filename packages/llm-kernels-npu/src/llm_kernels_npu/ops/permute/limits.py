"""What each backend of permute takes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from llm_kernels_npu.ops.checks import (
    INTEGERS,
    floating,
    npu_floating,
    on_npu,
    short,
    together,
)

# npu_moe_token_permute's documented bounds.
_NPU_MAX_COPIES = 16_777_214
_NPU_MAX_TOP_K = 512


def _shapes(tokens: Tensor, experts: Tensor) -> str | None:
    tokens_shape, experts_shape = tokens.shape, experts.shape
    if len(tokens_shape) != 2 or len(experts_shape) != 2 or tokens_shape[0] != experts_shape[0]:
        return (
            f"tokens of shape {tuple(tokens_shape)} and experts {tuple(experts_shape)}, "
            "want [N, H] and [N, K]"
        )
    if experts_shape[1] == 0:
        return "experts has no columns, want at least one expert a token"
    if experts.dtype not in INTEGERS:
        return f"experts are {short(experts.dtype)}, want int32 or int64"
    if tokens.device == experts.device:
        return None
    return together("tokens", tokens, "experts", experts)


def _any_device(tokens: Tensor, experts: Tensor) -> str | None:
    return _shapes(tokens, experts) or floating("tokens", tokens)


def _npu(tokens: Tensor, experts: Tensor) -> str | None:
    if experts.numel() > _NPU_MAX_COPIES:
        return f"{experts.numel()} copies, want at most {_NPU_MAX_COPIES}"
    if experts.dim() == 2 and experts.shape[1] > _NPU_MAX_TOP_K:
        return f"{experts.shape[1]} experts a token, want at most {_NPU_MAX_TOP_K}"
    return on_npu("tokens", tokens) or _shapes(tokens, experts) or npu_floating("tokens", tokens)


LIMITS: Mapping[str, Callable[..., str | None]] = MappingProxyType(
    {"reference": _any_device, "npu": _npu}
)
