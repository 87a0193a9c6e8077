"""Stub CANN libraries, compiled by gcc for the torch_npu that is installed."""

import hashlib
import re
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("cann.c")

# What torch_npu's libraries name as NEEDED, beside torch's own.
LIBRARIES = ("ascendcl", "hccl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel")
_NEEDING = ("lib/libtorch_npu.so", "lib/libnpu_profiler.so")
_CANN_NAME = re.compile(r"(acl|rt[A-Z]|Msprof|Hccl)\w+$")

# torch_npu looks these up by name when first used, so no symbol table lists them.
_LOOKED_UP = (
    "HcclCommDestroy",
    "HcclCommInitRootInfo",
    "HcclCommInitRootInfoConfig",
    "HcclGetCommName",
    "HcclGetRootInfo",
    "aclInit",
    "aclFinalize",
    "aclSetCompileopt",
    "aclrtCtxSetSysParamOpt",
    "aclrtDestroyStreamForce",
    "aclrtResetDevice",
    "aclrtSetDeviceSatMode",
    "aclrtSetOpExecuteTimeOut",
    "aclrtSetOpWaitTimeout",
    "aclrtSetSysParamOpt",
    "aclrtSynchronizeDevice",
    "aclrtSynchronizeDeviceWithTimeout",
    "aclrtSynchronizeStreamWithTimeout",
)


def build(torch_npu: Path, into: Path) -> Path:
    """The folder of the stub libraries for the torch_npu package at that path.

    Compiled once for each source and torch_npu; a build that breaks off leaves nothing.
    """
    source = SOURCE.read_text()
    unanswered = [name for name in _wanted(torch_npu) if not re.search(rf"\b{name}\(", source)]
    stubs = "".join(f"int {name}(void) {{ return 0; }}\n" for name in unanswered)
    digest = hashlib.sha256((source + stubs).encode()).hexdigest()[:16]
    folder = into / digest
    if folder.exists():
        return folder
    partial = into / f"{digest}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "unanswered.inc").write_text(stubs)
    (partial / "empty.c").write_text("")
    _compile(partial, "ascendcl", SOURCE, "-w", "-I", str(partial))
    for name in LIBRARIES[1:]:
        # A look-up in any of the others follows its dependency to the one that has it all.
        link = ("-Wl,--no-as-needed", "-L", str(partial), "-lascendcl")
        _compile(partial, name, partial / "empty.c", *link)
    partial.rename(folder)
    return folder


def _wanted(torch_npu: Path) -> list[str]:
    """CANN functions that torch_npu's libraries leave undefined, and those it looks up."""
    found = set(_LOOKED_UP)
    extensions = sorted(path.name for path in torch_npu.glob("_C*.so"))
    for library in (*_NEEDING, *extensions):
        command = ["nm", "-D", "--undefined-only", str(torch_npu / library)]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        names = (line.split()[-1].split("@")[0] for line in listed.splitlines())
        found.update(name for name in names if _CANN_NAME.match(name))
    return sorted(found)


def _compile(folder: Path, name: str, source: Path, *options: str) -> None:
    library = f"lib{name}.so"
    output = ("-o", str(folder / library))
    command = ["gcc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{library}", *output]
    subprocess.run([*command, str(source), *options], check=True)
