"""A launch compiled to a cubin by Triton's own ptxas: no device, no driver."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from triton_aot.recording import Launch

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Shared memory a block may take, by compute capability (CUDA C++ Programming Guide, table 24)."""


def compile_cubin(launch: Launch, capability: int) -> Any:
    """The compiled kernel: `.asm["cubin"]`, `.metadata.shared` in bytes."""
    constants = dict(launch.constants)
    signature = dict(launch.signature) | dict.fromkeys(constants, "constexpr")
    ordered = {name: signature[name] for name in launch.kernel.arg_names}
    places = [launch.kernel.arg_names.index(name) for name in launch.aligned]
    aligned = {(place,): [["tt.divisibility", 16]] for place in places}
    source = ASTSource(launch.kernel, ordered, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": launch.warps})
