"""Kernels as triton-ascend lowers them, executed on the CPU: the numbers of what Ascend compiles.

The lowered form is upstream MLIR. AscendNPU-IR's own tool takes it to LLVM's dialect, triton's
library to LLVM IR, and llvmlite to machine code. Programs of a launch run one after the other, so
neither races nor synchronisation are covered.
"""

import contextlib
import ctypes
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
import triton
from torch import Tensor

from triton_aot import ascend
from triton_aot.recording import Launch, describe

_PASSES = (
    "--convert-elementwise-to-linalg",
    "--one-shot-bufferize=allow-return-allocs-from-loops=1",
    "--convert-linalg-to-loops",
    "--expand-strided-metadata",
    "--lower-affine",
    "--convert-scf-to-cf",
    "--convert-math-to-llvm",
    "--convert-math-to-libm",
    "--arith-expand=include-bf16=1",
    "--convert-arith-to-llvm",
    "--finalize-memref-to-llvm",
    "--convert-func-to-llvm",
    "--convert-cf-to-llvm",
    "--reconcile-unrealized-casts",
)
# What upstream MLIR does not know, and the numbers do not depend on.
_FOREIGN = (
    (re.compile(r" \{tt\.tensor_kind = \d+ : i32\}|\{hivm\.unlikely_condition\}"), ""),
    (re.compile(r"\{input_precis?ion = \"[a-z]+\"\} "), ""),
    (re.compile(r"\) attributes \{SyncBlock[^}]*\}"), ") attributes {llvm.emit_c_interface}"),
)
_NUMBERS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}


@contextlib.contextmanager
def executed() -> Iterator[set[str]]:
    """Kernels started inside run on the CPU as lowered for Ascend; their names are collected."""
    compiled: dict[Launch, _Program] = {}
    names: set[str] = set()

    def run(kernel: Any, *args: object, grid: tuple[int, ...], **options: Any) -> None:
        launch, named = describe(kernel, args, options)
        if launch not in compiled:
            compiled[launch] = _Program(ascend.lower(launch), launch.kernel.fn.__name__)
        compiled[launch].run(grid, [(named[name], kind) for name, kind in launch.signature])
        names.add(launch.name)

    original = triton.JITFunction.run
    triton.JITFunction.run = run
    try:
        yield names
    finally:
        triton.JITFunction.run = original


class _Buffer(ctypes.Structure):
    """A memref of one dimension, as MLIR passes it."""

    _fields_ = [
        ("allocated", ctypes.c_void_p),
        ("aligned", ctypes.c_void_p),
        ("offset", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("stride", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, tensor: Tensor) -> "_Buffer":
        return cls(tensor.data_ptr(), tensor.data_ptr(), 0, tensor.numel(), 1)


class _Program:
    """One kernel as machine code of this CPU."""

    def __init__(self, linalg: str, name: str) -> None:
        self._engine = _engine(_to_llvm(linalg))
        address = self._engine.get_function_address(f"_mlir_ciface_{name}")
        self._call: Callable[..., None] = ctypes.CFUNCTYPE(None)(address)
        self._call.argtypes = None

    def run(self, grid: tuple[int, ...], arguments: list[tuple[Any, str]]) -> None:
        """Run every program of the grid, one after the other."""
        own = [torch.zeros(size, dtype=torch.uint8) for size in (4096, 1 << 20)]
        buffers = [_Buffer.of(tensor) for tensor in own]
        passed: list[Any] = [ctypes.byref(buffer) for buffer in buffers]
        for value, kind in arguments:
            if isinstance(value, Tensor):
                buffers.append(_Buffer.of(value))
                passed.append(ctypes.byref(buffers[-1]))
            else:
                passed.append(_NUMBERS[kind](value))
        sizes = (*grid, 1, 1)[:3]
        for x, y, z in np.ndindex(*sizes):
            self._call(*passed, *(ctypes.c_int32(number) for number in (*sizes, x, y, z)))


def _to_llvm(linalg: str) -> str:
    from triton._C.libtriton import ir
    from triton._C.libtriton import llvm as translator

    for pattern, replacement in _FOREIGN:
        linalg = pattern.sub(replacement, linalg)
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "linalg.mlir", Path(name) / "llvm.mlir"
        source.write_text(linalg)
        command = (str(ascend.binary("bishengir-opt")), str(source), *_PASSES, "-o", str(target))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"bishengir-opt: {done.stderr[:2000]}")
        context = ir.context()
        ir.load_dialects(context)
        translator.init_targets()
        module = ir.parse_mlir_module(str(target), context)
        return str(translator.to_module(module, translator.context()))


def _engine(text: str) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.add_symbol("memrefCopy", ctypes.cast(_copy, ctypes.c_void_p).value)
    module = llvm.parse_assembly(text)
    # Without the CPU's own features half-precision numbers are converted by calls into nowhere.
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine


@ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
def _copy(itemsize: int, source: int, target: int) -> None:
    """MLIR's runtime function that copies between strided memrefs of any rank."""
    read, write = _strided(source, itemsize), _strided(target, itemsize)
    if read.size:
        write[...] = read


def _strided(unranked: int, itemsize: int) -> np.ndarray:
    """The elements of an unranked memref {rank, descriptor}, in place."""
    rank, descriptor = (ctypes.c_int64 * 2).from_address(unranked)
    fields = (ctypes.c_int64 * (3 + 2 * rank)).from_address(descriptor)
    shape, strides = fields[3 : 3 + rank], fields[3 + rank :]
    if 0 in shape:
        return np.empty(shape, dtype=f"V{itemsize}")
    count = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    memory = (ctypes.c_ubyte * (count * itemsize)).from_address(fields[1] + fields[2] * itemsize)
    flat = np.frombuffer(memory, dtype=f"V{itemsize}")
    steps = [step * itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(flat, shape, steps)
