"""Pickles read without running them: a closed list of names, everything else is refused.

Nothing is imported for a pickle's sake. Tensors become `Lazy` references; enums and option objects
of Megatron-LM and MindSpeed-LLM become inert `Stub` values.
"""

import io
import pickle
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from llm_ckpt.errors import FormatError
from llm_ckpt.layout import Shape

STORAGES: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.float64: "DoubleStorage",
        torch.float32: "FloatStorage",
        torch.float16: "HalfStorage",
        torch.bfloat16: "BFloat16Storage",
        torch.int64: "LongStorage",
        torch.int32: "IntStorage",
        torch.int16: "ShortStorage",
        torch.int8: "CharStorage",
        torch.uint8: "ByteStorage",
        torch.bool: "BoolStorage",
    }
)
_DTYPES = {name: dtype for dtype, name in STORAGES.items()} | {"UntypedStorage": torch.uint8}
_GETATTR = ("builtins", "getattr")
# Code of these packages is never imported: their classes turn into stubs.
_STUB_PACKAGES = ("megatron", "mindspeed", "mindspeed_llm", "transformer_engine", "apex")
_STUB_NAMES = frozenset(
    {
        ("_codecs", "encode"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("pathlib", "PosixPath"),
        ("signal", "Signals"),
        ("types", "SimpleNamespace"),
    }
)


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage record of a torch zip file."""

    dtype: torch.dtype
    key: str


@dataclass(frozen=True, slots=True)
class Lazy:
    """A tensor of a torch zip file, not read."""

    storage: Storage
    offset: int
    shape: Shape
    strides: Shape

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements follow each other in row-major order."""
        expected = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent != 1 and stride != expected:
                return False
            expected *= extent
        return True


class Stub:
    """What a foreign class becomes: it keeps its arguments and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.args = args
        self.kwargs = kwargs

    def __setstate__(self, state: object) -> None:
        """Keep the state."""
        self.state = state

    def __call__(self, *args: object) -> "Stub":
        """A stub of what the call would have made."""
        return Stub(*args)


def load_state(data: bytes, *, where: str) -> Any:
    """The object of a torch zip's `data.pkl`."""
    return _load(_StateUnpickler(io.BytesIO(data)), where=where)


def load_with(data: bytes, find: Callable[[str, str], object | None], *, where: str) -> Any:
    """The object of a plain pickle whose globals are what `find(module, name)` returns."""
    return _load(_FindUnpickler(io.BytesIO(data), find), where=where)


def _load(unpickler: pickle.Unpickler, *, where: str) -> Any:
    try:
        return unpickler.load()
    except pickle.UnpicklingError as error:
        raise FormatError(f"{where}: pickle refused: {error}") from None
    except (EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{where}: malformed pickle: {error!r}") from None


def refuse(module: str, name: str) -> pickle.UnpicklingError:
    """The error for a name outside the allow-list."""
    return pickle.UnpicklingError(
        f"it names {module}.{name}, which is not on the allow-list; unpickling could run code"
    )


def _member(kind: object, name: object) -> Stub:
    """An enum's member, which Python 3.11.0 to 3.11.3 pickle as `getattr(kind, name)`.

    Of a stub alone: of anything else an attribute could be code.
    """
    if kind is not Stub:
        raise refuse("builtins", "getattr")
    return Stub(name)


class _StateUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        # Protocol 2, torch.save's, has Python 2's name.
        module_name = "builtins" if module_name == "__builtin__" else module_name
        name = (module_name, global_name)
        if name in _SAFE:
            return _SAFE[name]
        if module_name in ("torch", "torch.storage") and global_name in _DTYPES:
            return _DTYPES[global_name]
        dtype = getattr(torch, global_name, None) if module_name == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if name in _STUB_NAMES or module_name.split(".")[0] in _STUB_PACKAGES:
            return Stub
        raise refuse(module_name, global_name)

    def persistent_load(self, pid: Any, /) -> Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown persistent id {kind!r}")
        return Storage(dtype, str(key))


class _FindUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, find: Callable[[str, str], object | None]) -> None:
        super().__init__(file)
        self._find = find

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) == _GETATTR:
            return _member
        found = self._find(module_name, global_name)
        if found is None:
            raise refuse(module_name, global_name)
        return found


def _rebuild_tensor(
    storage: Storage, offset: int, shape: Shape, strides: Shape, *_: object
) -> Lazy:
    return Lazy(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Lazy, *_: object) -> Lazy:
    return data


_SAFE: Mapping[tuple[str, str], object] = MappingProxyType(
    {
        ("argparse", "Namespace"): Namespace,
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        _GETATTR: _member,
        ("torch", "Size"): tuple,
        ("torch", "device"): Stub,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    }
)
