"""The dispatch mode that computes on the CPU what torch is asked to compute on `npu`.

A tensor on the fake device has its bytes in host memory, so a CPU tensor over the same bytes
can stand for it: results of in-place operators and views need no copying back.
"""

import ctypes
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_map

from fake_npu.operators import ATEN, FUSED

# torch_npu itself does these: they touch no values, or must make real device tensors.
_ALLOCATING = frozenset({"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"})
_VIEWS = """
    _pin_memory _reshape_alias _unsafe_view alias as_strided chunk detach diagonal expand
    is_pinned is_same_size lift_fresh narrow permute record_stream resize_ select set_ slice
    split split_with_sizes squeeze t transpose unbind unfold unsqueeze view view_as
"""
_NATIVE = _ALLOCATING.union(_VIEWS.split())


class FakeNpu(TorchDispatchMode):
    """Every operator called is listed in `calls`, as `namespace::name`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        namespace, name = func._schema.name.split("::")
        self.calls.append(func._schema.name)
        if namespace == "aten" and name in _NATIVE:
            out = func(*args, **kwargs)
            return _poison(out) if name in _ALLOCATING else out
        call = _Call(kwargs)
        args, kwargs = tree_map(call.to_cpu, (args, kwargs))
        if namespace == "npu" or name in ATEN:
            out = _fused(name, func)(**bind_by_name(func._schema.arguments, args, kwargs))
        else:
            out = func(*args, **kwargs)
        return tree_map(call.to_npu, out)

    def write_calls(self, folder: str) -> None:
        """How often each operator was called in this process: a file of its own in `folder`."""
        self.write_counts(Path(folder, f"{os.getpid()}.calls"))

    def write_counts(self, file: Path) -> None:
        """How often each operator in `calls` was called: a line each."""
        counts = Counter(self.calls)
        lines = (f"{name} {count}\n" for name, count in sorted(counts.items()))
        file.write_text("".join(lines))


def active() -> FakeNpu:
    """The mode of this process."""
    return next(mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, FakeNpu))


class _Call:
    """One operator call's tensors: which CPU tensor stands for which NPU tensor."""

    def __init__(self, kwargs: dict[str, Any]) -> None:
        self._originals: dict[int, Tensor] = {}
        self._kept: list[Tensor] = []
        self._seen: torch.device | None = None
        self._wanted: torch.device | None = None
        if kwargs.get("device") is not None:
            self._wanted = torch.device(kwargs["device"])
            if self._wanted.type == "npu":
                kwargs["device"] = torch.device("cpu")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "npu":
            kwargs["generator"] = None

    def to_cpu(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.device.type != "npu":
            return value
        self._seen = value.device
        stand_in = host_view(value)
        # Kept alive, so that no other tensor gets its id.
        self._kept.append(stand_in)
        self._originals[id(stand_in)] = value
        return stand_in

    def to_npu(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in self._originals:
            return self._originals[id(value)]
        device = self._wanted or self._seen
        if device is None:
            return value
        if device.type != "npu":
            # A copy to the host must not share the device's bytes.
            return value.clone() if self._seen is not None else value
        moved = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        host_view(moved).copy_(value)
        return moved


def bind_by_name(arguments: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name: the dispatcher passes some by position and leaves defaults out."""
    bound = {a.name: a.default_value for a in arguments if a.has_default_value()}
    bound.update(zip((a.name for a in arguments), args, strict=False))
    return bound | kwargs


def host_view(tensor: Tensor) -> Tensor:
    """A CPU tensor over the bytes of a tensor on the fake device."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    data = (ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(data, dtype=torch.uint8).view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _poison(out: Tensor) -> Tensor:
    """NaN in new memory of the device, so that reading it unwritten shows."""
    if out.device.type == "npu" and out.is_floating_point():
        host_view(out).fill_(float("nan"))
    return out


def _fused(name: str, func: Any) -> Callable[..., Any]:
    found = FUSED.get(name) or ATEN.get(name)
    if found is None:
        raise NotImplementedError(f"the fake NPU has no {func}: write it in fake_npu/operators.py")
    return found
