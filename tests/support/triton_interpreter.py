"""Two repairs of Triton 3.5's interpreter, which runs kernels on the CPU."""

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def repair() -> None:
    """Install both, in a process started with TRITON_INTERPRET=1; stays to its end.

    A loop's bound is an array of one element, which numpy 2.4 no longer takes for an integer; and
    a product of bfloat16, which numpy does not know, multiplies the bits as if they were integers.
    """
    interpreter._patch_lang_tensor = _with_index(interpreter._patch_lang_tensor)
    interpreter.InterpreterBuilder.create_dot = _dot


def _with_index(patch: Any) -> Any:
    def patched(tensor: Any) -> None:
        patch(tensor)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    return patched


def _dot(_builder: Any, a: Any, b: Any, accumulator: Any, *_precision: Any) -> Any:
    product = np.matmul(_numbers(a), _numbers(b), dtype=accumulator.data.dtype)
    return interpreter.TensorHandle(product + accumulator.data, accumulator.dtype.scalar)


def _numbers(handle: Any) -> np.ndarray:
    """A tile's values; bfloat16 lies there as uint16, the upper half of a float32."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
