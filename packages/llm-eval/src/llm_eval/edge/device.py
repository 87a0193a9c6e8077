"""Which device to run on: `auto` is CUDA, else NPU, else CPU; a named one exists or it raises."""

from importlib.util import find_spec
from typing import Literal

from llm_eval.errors import EvalError

DeviceName = Literal["auto", "cpu", "cuda", "npu"]
CHOICES: tuple[DeviceName, ...] = ("auto", "cpu", "cuda", "npu")


def resolve(name: DeviceName) -> str:
    """The torch device string for `name`."""
    found = available()
    if name == "auto":
        return found[0]
    for device in found:
        if device.split(":")[0] == name:
            return device
    raise EvalError(f"device {name}: not on this machine; found {', '.join(found)}")


def available() -> list[str]:
    """Torch device strings that work here, best first; the CPU always does."""
    import torch

    devices = ["cuda:0"] if torch.cuda.is_available() else []
    return [*devices, *_npu(), "cpu"]


def _npu() -> list[str]:
    if find_spec("torch_npu") is None:
        return []
    try:
        import torch_npu  # pyright: ignore[reportMissingImports]: only where an NPU is
    except (ImportError, OSError, RuntimeError):
        # Installed, but its driver libraries are not: no device to offer.
        return []
    return ["npu:0"] if torch_npu.npu.is_available() else []
