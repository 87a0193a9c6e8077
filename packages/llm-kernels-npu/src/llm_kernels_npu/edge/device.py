"""Which devices this machine has."""

import importlib
import importlib.util

import torch

from llm_kernels_npu.errors import BackendMissingError, UnknownNameError
from llm_kernels_npu.registry import AUTO_ORDER


def present() -> tuple[str, ...]:
    """Device types this machine can run on, fastest first."""
    return tuple(device for device in AUTO_ORDER if _why_absent(device) is None)


def pick(device: str) -> str:
    """That device, or for `auto` the first present; an absent one raises with the reason."""
    if device == "auto":
        return present()[0]
    if device not in AUTO_ORDER:
        raise UnknownNameError("device", device, ("auto", *AUTO_ORDER))
    reason = _why_absent(device)
    if reason is not None:
        here = ", ".join(present())
        raise BackendMissingError(f"device {device}: {reason} (devices here: {here})")
    return device


def _why_absent(device: str) -> str | None:
    if device == "cuda":
        return None if torch.cuda.is_available() else "torch.cuda.is_available() is false"
    if device != "npu":
        return None
    if importlib.util.find_spec("torch_npu") is None:
        return "torch_npu is not installed: pip install torch-npu==2.9.1"
    try:
        importlib.import_module("torch_npu")
    except ImportError as error:
        return f"torch_npu does not load: {error}"
    available = torch.get_device_module("npu").is_available()
    return None if available else "torch.npu.is_available() is false"
