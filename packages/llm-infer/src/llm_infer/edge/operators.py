"""Which operators the native engine computes with, by name."""

from collections.abc import Callable
from importlib.metadata import entry_points

import torch

from llm_infer.compiled.build import CannotCompileError
from llm_infer.compiled.kernels import CompiledKernels
from llm_infer.compiled.library import library
from llm_infer.errors import InferError
from llm_infer.kernels import Kernels, TorchKernels

GROUP = "llm_infer.kernels"
AUTO, TORCH, COMPILED = "auto", "torch", "compiled"


def resolve(name: str, *, device: str, dtype: torch.dtype) -> Kernels:
    """Operators called `name` for a device type and the numbers of a model.

    `auto`: compiled for float32 on a CPU where there is a C compiler, else torch's.
    """
    if name == TORCH:
        return TorchKernels()
    is_fit = device == "cpu" and dtype == torch.float32
    if name == AUTO:
        return _compiled_or_torch() if is_fit else TorchKernels()
    if name == COMPILED:
        if not is_fit:
            kind = str(dtype).removeprefix("torch.")
            raise InferError(
                f"--kernels {COMPILED}: for float32 on a CPU, not {kind} on {device}; "
                f"with --kernels {AUTO} torch's operators are used there"
            )
        return _required()
    providers = {one.name: one for one in entry_points(group=GROUP)}
    if name not in providers:
        choices = ", ".join((AUTO, TORCH, COMPILED, *sorted(providers)))
        raise InferError(f"kernels {name}: no provider of {GROUP!r} has that name; found {choices}")
    make: Callable[..., Kernels] = providers[name].load()
    return make(device=device)


def _compiled_or_torch() -> Kernels:
    functions = library()
    if isinstance(functions, CannotCompileError):
        return TorchKernels(because=str(functions))
    return CompiledKernels(functions)


def _required() -> Kernels:
    functions = library()
    if isinstance(functions, CannotCompileError):
        raise InferError(f"--kernels {COMPILED}: {functions}")
    return CompiledKernels(functions)
