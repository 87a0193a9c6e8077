"""A launch lowered by triton-ascend and compiled by AscendNPU-IR, as far as that goes without CANN.

The Ascend compiler runs its whole pipeline, with the planning of on-chip memory and the insertion
of synchronisation, to optimised HIVM. What turns that into a device's code, `hivmc`, is in CANN
alone: an empty program stands for it.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from triton_aot.recording import Launch

TARGETS = {
    "Ascend910B3": "bishengir-compile",
    "Ascend910_9392": "bishengir-compile",
    "Ascend950PR_9589": "bishengir-compile-a5",
}
"""Compiler by chip: Atlas A2, A3 and 950."""

_OPTIONS = (
    "--enable-hfusion-compile=true",
    "--enable-hivm-compile=true",
    "--enable-triton-kernel-compile=true",
    "--enable-auto-multi-buffer=True",
    "--enable-auto-bind-sub-block=True",
)
_OVERFLOW = re.compile(r"error: (\w+) overflow, requires (\d+) bits while (\d+) bits")


@dataclass(frozen=True)
class Outcome:
    """What the Ascend compiler said."""

    compiled: bool
    overflow: tuple[str, int] | None
    """The on-chip memory that does not suffice (`ub`, `cc` for L0C) and the bytes wanted."""
    messages: str


def lower(launch: Launch) -> str:
    """The kernel as linalg on tensors, triton-ascend's last stage before the Ascend compiler.

    Its `triton-adapter-opt` crashes now and then on what it lowers at other times (seen three times
    in some hundred runs): a crash, not a refusal, is tried again.
    """
    for _ in range(2):
        try:
            return _lowered(launch)
        except subprocess.CalledProcessError as error:
            if error.returncode >= 0:
                raise
    return _lowered(launch)


def _lowered(launch: Launch) -> str:
    from triton._C.libtriton import ir

    target = GPUTarget("npu", "Ascend910B3", 0)
    backend = make_backend(target)
    source = ASTSource(launch.kernel, dict(launch.signature), constants=dict(launch.constants))
    options = backend.parse_options({})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    codegen = backend.get_codegen_implementation()
    module = source.make_ir(options, codegen, backend.get_module_map(), context)
    metadata = {"target": target, "hash": "none", **options.__dict__}
    stages: dict = {}
    backend.add_stages(stages, options)
    return str(stages["ttadapter"](stages["ttir"](module, metadata), metadata))


def compile_hivm(linalg: str, chip: str, folder: Path) -> Outcome:
    """Run the Ascend compiler on a lowered kernel, in a folder for its files."""
    source = folder / "kernel.mlir"
    source.write_text(linalg)
    command = (str(binary(TARGETS[chip])), str(source), f"--target={chip}", *_OPTIONS)
    done = subprocess.run(
        [*command, "-o", str(folder / "kernel.o")],
        cwd=folder,
        env={**os.environ, "PATH": f"{_stand_in(folder)}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = _OVERFLOW.search(done.stderr)
    overflow = (found[1], int(found[2]) // 8) if found else None
    return Outcome(done.returncode == 0, overflow, done.stderr[-2000:])


def binary(name: str) -> Path:
    """A program of the package ascendnpu-ir."""
    spec = find_spec("ascendnpuir")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "bin" / name


def _stand_in(folder: Path) -> Path:
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("hivmc", "hivmc-a5"):
        (programs / name).write_text("#!/bin/sh\nexit 0\n")
        (programs / name).chmod(0o755)
    return programs
