"""Which device to run on: `auto` is CUDA, else NPU, else CPU; a named one exists or it raises."""

from importlib.util import find_spec
from typing import Literal

from llm_infer.errors import InferError

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
    raise InferError(f"device {name}: not on this machine; found {', '.join(found)}")


def of_rank(device: str, rank: int) -> str:
    """The device of a rank where rank 0 has `device`: `cuda:1` for `cuda:0`, one CPU for all."""
    kind = device.split(":")[0]
    return kind if kind == "cpu" else f"{kind}:{rank}"


def require_ranks(name: DeviceName, size: int) -> None:
    """Raise unless each of `size` ranks can have a device of its own, but for the CPU."""
    import torch

    kind = resolve(name).split(":")[0]
    if kind == "cpu":
        return
    found = int(getattr(torch, kind).device_count())
    if found < size:
        raise InferError(f"tp({size}) > {found}, the number of {kind} devices on this machine")


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
