"""What kernels an operator starts and how, noted instead of run: on meta tensors, no device."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}


@dataclass(frozen=True)
class Launch:
    """One kernel with the types of its arguments: what a compiler needs to know."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    warps: int
    aligned: tuple[str, ...] = ()
    """Arguments that are multiples of 16: Triton compiles for that, as it does for a pointer's."""

    @property
    def name(self) -> str:
        """`norm_kernels.forward_kernel`."""
        return f"{self.kernel.fn.__module__.split('.')[-1]}.{self.kernel.fn.__name__}"

    def __str__(self) -> str:
        dtype = next(kind for _, kind in self.signature).lstrip("*")
        constants = " ".join(f"{name}={value}" for name, value in self.constants)
        return f"{self.name} {dtype} {constants}"


@contextlib.contextmanager
def recorded() -> Iterator[dict[Launch, tuple[int, ...]]]:
    """The launches made inside, each with its grid; nothing runs."""
    launches: dict[Launch, tuple[int, ...]] = {}

    def note(kernel, *args, grid, **options):
        launches.setdefault(describe(kernel, args, options)[0], grid)

    original = triton.JITFunction.run
    triton.JITFunction.run = note
    try:
        yield launches
    finally:
        triton.JITFunction.run = original


def describe(
    kernel: Any, args: tuple[object, ...], options: dict[str, Any]
) -> tuple[Launch, dict[str, object]]:
    """A call of `kernel[grid]` as a launch, and all its arguments by name."""
    warps = options.get("num_warps", 4)
    constants = {n: value for n, value in options.items() if n in kernel.arg_names}
    named = dict(zip(kernel.arg_names, args, strict=False)) | constants
    fixed = {n: value for n, value in named.items() if n in constants or value is None}
    signature = tuple((n, _kind(value)) for n, value in named.items() if n not in fixed)
    aligned = tuple(n for n, _ in signature if _is_aligned(named[n]))
    return Launch(kernel, signature, tuple(fixed.items()), warps, aligned), named


def _is_aligned(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int), value
    return "i32" if abs(value) < 2**31 else "i64"
