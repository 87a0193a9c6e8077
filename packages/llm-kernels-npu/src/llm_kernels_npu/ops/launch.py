"""How Triton kernels are started: on which target, how many programs, on which device."""

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends import backends

from llm_kernels_npu.ops.tiles import Target


@triton.jit
def _nothing() -> None:
    pass


INTERPRETED: bool = not isinstance(_nothing, triton.JITFunction)
"""Whether this process interprets kernels on the CPU (Triton's own TRITON_INTERPRET=1)."""

TARGET: Target = "npu" if "ascend" in backends else "cuda"
"""What the installed Triton compiles for: triton-ascend and triton exclude each other."""


def launch(
    kernel: Any, grid: tuple[int, ...], *args: object, warps: int = 4, **constants: object
) -> None:
    """Start `kernel` on the device of its first tensor; an empty grid has nothing to do.

    `warps` is a program's warps on CUDA; an NPU has none. `constants` are its constexpr arguments.
    """
    if 0 in grid:
        return
    first = next(arg for arg in args if isinstance(arg, Tensor))
    with _current(first.device):
        kernel[grid](*args, num_warps=warps, **constants)


def _current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton starts kernels on the current device, whatever device the tensors are on."""
    if device.index is None or device.type not in ("cuda", "npu"):
        return contextlib.nullcontext()
    return torch.get_device_module(device).device(device.index)
