"""Runs one program in a sandbox. Started as a script by `outside.py`, never imported by it.

Standard library only, and little of it: its start is the sandbox's overhead. The job comes on
stdin and the verdict goes to stdout, both marshalled. Two processes: the first enters the
namespaces and builds the file system; its child is the first process of the PID namespace, gives
up every right and becomes a new interpreter (`program.py`), which runs the program. When it ends,
the kernel kills all that is left in the namespace.
"""

import ctypes
import marshal
import os
import resource
import signal
import struct
import sys
from contextlib import suppress

_NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE, _MNT_DETACH = -100, 0x8000, 2
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 38, 22, 24
_SYS_MOUNT_SETATTR = 442
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Read the job, run it, write `{"finished": bool, "status": int}` or `{"error": str}`."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    job = marshal.loads(sys.stdin.buffer.read())
    try:
        # Opened here: there is no interpreter in the sandbox's file system.
        job["interpreter"] = os.open(job["command"][0], os.O_PATH | os.O_CLOEXEC)
        if job["isolate"]:
            _enter_namespaces()
            _build_root(job)
        verdict = _run(job)
    except OSError as error:
        verdict = {"error": f"{error.filename or 'sandbox'}: {error.strerror}"}
    sys.stdout.buffer.write(marshal.dumps(verdict))


def _enter_namespaces() -> None:
    user, group = os.geteuid(), os.getegid()
    _check("unshare", _libc.unshare(_NEW_NAMESPACES))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_NOBODY} {user} 1"),
        ("gid_map", f"{_NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _check("sethostname", _libc.sethostname(b"sandbox", 7))


def _build_root(job: dict) -> None:
    """A tmpfs with the visible folders bound read-only, an own /tmp, and three devices."""
    root = job["root"]
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in job["visible"]:
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
            continue
        os.makedirs(root + path)
        _mount(path, root + path, None, _MS_BIND | _MS_REC, None)
        _set_attributes(root + path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, _AT_RECURSIVE)
    os.mkdir(root + "/dev")
    for name in ("null", "zero", "urandom"):
        with open(f"{root}/dev/{name}", "w"):
            pass
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _MS_BIND, None)
    os.mkdir(root + "/tmp")
    os.mkdir(root + "/old")
    os.chdir(root)
    number = _SYS_PIVOT_ROOT[job["machine"]]
    _check("pivot_root", _libc.syscall(number, b".", b"old"))
    os.chdir("/")
    _check("umount", _libc.umount2(b"/old", _MNT_DETACH))
    os.rmdir("/old")
    options = f"size={job['disk_bytes']},nr_inodes=256,mode=700"
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)
    _set_attributes("/", _ATTR_RDONLY | _ATTR_NOSUID, 0)
    os.chdir("/tmp")


def _run(job: dict) -> dict:
    """Fork the program's process and wait for it."""
    reader, writer = os.pipe()
    source, feed = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _become(job, source, writer)
        except OSError as error:
            # The nonce tells this from what a program writes.
            said = f"{error.filename or 'sandbox'}: {error.strerror}"
            os.write(3, b"no:" + job["nonce"] + said.encode())
        finally:
            os._exit(1)
    os.close(writer)
    os.close(source)
    with suppress(BrokenPipeError), open(feed, "wb") as stream:
        stream.write(marshal.dumps((job["program"], job["nonce"])))
    _, status = os.waitpid(child, 0)
    # Read after the end only: a program that fills the pipe blocks itself, not us.
    said = os.read(reader, 4096)
    refusal = b"no:" + job["nonce"]
    return {
        "finished": said == job["nonce"],
        "status": os.waitstatus_to_exitcode(status),
        "refused": said[len(refusal) :].decode("utf-8", "replace")
        if said.startswith(refusal)
        else "",
    }


def _become(job: dict, source: int, writer: int) -> None:
    """Turn into the program's interpreter, with no descriptor but the job's and the verdict's."""
    os.setsid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Above what the program may open, so that it can never make another of this number.
    os.dup2(job["interpreter"], job["exec_descriptor"], inheritable=False)
    spare = os.dup2(writer, job["exec_descriptor"] + 1)
    os.dup2(source, 0)
    os.dup2(spare, 3)
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in (1, 2):
        os.dup2(nothing, number)
    os.closerange(4, job["exec_descriptor"])
    os.closerange(job["exec_descriptor"] + 1, 1 << 16)
    for kind, amount in job["limits"]:
        resource.setrlimit(kind, (amount, amount))
    if job["isolate"]:
        _give_up_rights(job)
    # Not inherited from us: what the program prints of its own environment is the same anywhere.
    os.execve(job["exec_descriptor"], job["command"], dict(os.environ))


def _give_up_rights(job: dict) -> None:
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    header, nothing = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    _check("capset", _libc.syscall(_SYS_CAPSET[job["machine"]], header, nothing))
    _check("no_new_privs", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    rules = ctypes.create_string_buffer(job["filter"], len(job["filter"]))
    program = struct.pack("@HP", len(job["filter"]) // 8, ctypes.addressof(rules))
    _check("seccomp", _libc.prctl(_PR_SET_SECCOMP, 2, program, 0, 0))


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None) -> None:
    values = [None if text is None else text.encode() for text in (source, target, kind, data)]
    result = _libc.mount(*values[:3], ctypes.c_ulong(flags), values[3])
    _check(f"mount {target}", result)


def _set_attributes(path: str, attributes: int, flags: int) -> None:
    """mount_setattr(2), Linux 5.12: adds attributes and keeps those that are locked."""
    wanted = struct.pack("<QQQQ", attributes, 0, 0, 0)
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, wanted, ctypes.c_size_t(32)
    )
    _check(f"mount_setattr {path}", result)


def _check(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


main()
