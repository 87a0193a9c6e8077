"""The sandbox as seen from llm-eval: programs in, verdicts out."""

import marshal
import os
import platform
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llm_eval.edge.sandbox import syscalls
from llm_eval.errors import EvalError

_INSIDE = Path(__file__).with_name("inside.py")
_PROGRAM = Path(__file__).with_name("program.py")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program may use. CPU time is 3 s, as HumanEval's own runner allows."""

    cpu_s: int = 3
    wall_s: float = 10.0
    memory_bytes: int = 1 << 30
    disk_bytes: int = 16 << 20
    open_files: int = 64

    def resources(self) -> list[tuple[int, int]]:
        """`setrlimit` arguments. The kernel kills one second of CPU time after its warning."""
        return [
            (resource.RLIMIT_CPU, self.cpu_s),
            (resource.RLIMIT_AS, self.memory_bytes),
            (resource.RLIMIT_FSIZE, self.disk_bytes),
            (resource.RLIMIT_NOFILE, self.open_files),
            (resource.RLIMIT_CORE, 0),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the program ran to its last line, else why not."""

    passed: bool
    reason: str


class Sandbox:
    """Runs programs one at a time; use as a context manager.

    `unsafe` runs them in a plain process with the same limits: for machines that forbid
    namespaces, and programs one trusts. Raises EvalError on entry where the machine cannot isolate.
    """

    def __init__(self, limits: Limits | None = None, *, unsafe: bool = False) -> None:
        self._limits = limits or Limits()
        self._unsafe = unsafe
        self._root: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        self._root = tempfile.TemporaryDirectory(prefix="llm-eval-sandbox-")
        try:
            if not self._unsafe:
                self._require_isolation()
        except BaseException:
            self._root.cleanup()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._root is not None:
            self._root.cleanup()

    def run(self, program: str) -> Verdict:
        """Run a Python program to its end or to the first limit."""
        try:
            found = self._start(program)
        except subprocess.TimeoutExpired:
            return Verdict(passed=False, reason=f"ran longer than {self._limits.wall_s:g} s")
        if "error" in found or found.get("refused"):
            raise EvalError(f"sandbox: {found.get('error') or found['refused']}")
        if found["finished"] and found["status"] == 0:
            return Verdict(passed=True, reason="passed")
        return Verdict(passed=False, reason=_reason(found["status"]))

    def _start(self, program: str) -> dict[str, Any]:
        command = [sys.executable, "-I", "-S", str(_INSIDE)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(self._job(program), timeout=self._limits.wall_s)
        finally:
            # The kernel then ends the program too: it dies with its parent and its namespace.
            process.kill()
            process.wait()
        if not output:
            raise EvalError(f"sandbox: ended without a verdict (status {process.returncode})")
        return marshal.loads(output)

    def _job(self, program: str) -> bytes:
        assert self._root is not None, "use the sandbox as a context manager"
        machine = platform.machine()
        return marshal.dumps(
            {
                "isolate": not self._unsafe,
                "machine": machine,
                "root": self._root.name,
                "visible": _visible(),
                "disk_bytes": self._limits.disk_bytes,
                "limits": self._limits.resources(),
                "filter": b"" if self._unsafe else syscalls.filter_for(machine),
                "exec_descriptor": syscalls.EXEC_DESCRIPTOR,
                "command": [
                    os.path.realpath(sys.executable),
                    *("-B", "-P", "-s", "-S", "-c", _PROGRAM.read_text()),
                ],
                "nonce": secrets.token_bytes(16),
                "program": program,
            }
        )

    def _require_isolation(self) -> None:
        reason = None
        if sys.platform != "linux" or not syscalls.is_known(platform.machine()):
            reason = f"{sys.platform} on {platform.machine()}; want Linux on x86_64 or aarch64"
        else:
            try:
                verdict = self.run("x = 1")
                reason = None if verdict.passed else verdict.reason
            except EvalError as error:
                reason = str(error)
        if reason is not None:
            raise EvalError(
                f"programs cannot be isolated on this machine: {reason}\n"
                "User namespaces may be switched off (sysctl kernel.unprivileged_userns_clone, "
                "kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces).\n"
                "--unsafe runs what the model writes without a sandbox."
            )


def _visible() -> list[str]:
    """The folders of Python's library and of the C libraries, none inside another."""
    prefixes = {os.path.realpath(sys.base_prefix), os.path.realpath(sys.base_exec_prefix)}
    wanted = {f"{prefix}/{name}" for prefix in prefixes for name in ("lib", "lib64")}
    wanted = {path for path in (*wanted, *_LIBRARIES) if os.path.lexists(path)}
    return [
        path
        for path in sorted(wanted)
        if not any(path != other and path.startswith(other + "/") for other in wanted)
    ]


def _reason(status: int) -> str:
    if status >= 0:
        return "failed" if status else "ended early"
    if -status in (signal.SIGXCPU, signal.SIGKILL):
        return "used up its CPU time"
    return f"killed by {signal.Signals(-status).name}"
