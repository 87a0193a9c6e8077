"""Fused operators for Ascend and CUDA behind one interface, each beside its reference.

`kernels(device=…)` gives the operators as one object. Importing this package imports neither
torch_npu nor triton, and torch only when something is used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_kernels_npu.provider import Kernels, kernels

__version__ = version("llm-kernels-npu")
__all__ = ["Kernels", "__version__", "kernels"]


def __getattr__(name: str) -> object:
    if name in ("Kernels", "kernels"):
        return getattr(import_module("llm_kernels_npu.provider"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
