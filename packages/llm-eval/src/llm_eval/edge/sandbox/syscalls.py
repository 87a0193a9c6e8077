"""The system calls that a sandboxed program may make, and the seccomp filter that says so.

An allow-list: what is not here fails with EPERM, so also whatever a later kernel adds. Missing on
purpose: processes (fork, execve), sockets, signals to others, mounts, namespaces, keys, io_uring,
ptrace, memfd and System V shared memory. Numbers: Linux' asm/unistd.h of each architecture.
"""

import errno
import struct
from collections.abc import Mapping
from types import MappingProxyType

# Name: its number on x86-64 and on aarch64; None where the architecture has no such call.
_ALLOWED: Mapping[str, tuple[int | None, int | None]] = MappingProxyType({
    "access": (21, None), "alarm": (37, None), "arch_prctl": (158, None), "brk": (12, 214),
    "chdir": (80, 49), "chmod": (90, None), "clock_getres": (229, 114),
    "clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "close": (3, 57),
    "close_range": (436, 436), "copy_file_range": (326, 285), "creat": (85, None),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_pwait": (281, 22), "epoll_wait": (232, None),
    "eventfd2": (290, 19), "exit": (60, 93), "exit_group": (231, 94), "faccessat": (269, 48),
    "faccessat2": (439, 439), "fchdir": (81, 50), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fcntl": (72, 25), "fdatasync": (75, 83), "flock": (73, 32), "fstat": (5, 80),
    "fstatfs": (138, 44), "fsync": (74, 82), "ftruncate": (77, 46), "futex": (202, 98),
    "getcpu": (309, 168), "getcwd": (79, 17), "getdents": (78, None), "getdents64": (217, 61),
    "getegid": (108, 177), "geteuid": (107, 175), "getgid": (104, 176), "getgroups": (115, 158),
    "getitimer": (36, 102), "getpgrp": (111, None), "getpid": (39, 172), "getppid": (110, 173),
    "getrandom": (318, 278), "getrlimit": (97, 163), "getrusage": (98, 165), "gettid": (186, 178),
    "gettimeofday": (96, 169), "getuid": (102, 174), "ioctl": (16, 29), "link": (86, None),
    "linkat": (265, 37), "lseek": (8, 62), "lstat": (6, None), "madvise": (28, 233),
    "membarrier": (324, 283), "mkdir": (83, None), "mkdirat": (258, 34), "mmap": (9, 222),
    "mprotect": (10, 226), "mremap": (25, 216), "munmap": (11, 215), "nanosleep": (35, 101),
    "newfstatat": (262, 79), "open": (2, None), "openat": (257, 56), "pause": (34, None),
    "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73),
    "pread64": (17, 67), "pselect6": (270, 72), "pwrite64": (18, 68), "read": (0, 63),
    "readlink": (89, None), "readlinkat": (267, 78), "readv": (19, 65), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "restart_syscall": (219, 128),
    "rmdir": (84, None), "rseq": (334, 293), "rt_sigaction": (13, 134),
    "rt_sigpending": (127, 136), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigtimedwait": (128, 137), "sched_getaffinity": (204, 123), "sched_yield": (24, 124),
    "select": (23, None), "sendfile": (40, 71), "set_robust_list": (273, 99),
    "set_tid_address": (218, 96), "setitimer": (38, 103), "sigaltstack": (131, 132),
    "stat": (4, None), "statfs": (137, 43), "statx": (332, 291), "symlink": (88, None),
    "symlinkat": (266, 36), "sysinfo": (99, 179), "tgkill": (234, 131), "time": (201, None),
    "times": (100, 153), "truncate": (76, 45), "umask": (95, 166), "uname": (63, 160),
    "unlink": (87, None), "unlinkat": (263, 35), "utimensat": (280, 88), "write": (1, 64),
    "writev": (20, 66),
})  # fmt: skip

# The interpreter is started by execveat of this descriptor and of no other. It is above the limit
# of open files and closed by the start itself, so that a program has none of that number.
EXEC_DESCRIPTOR = 200

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD = 0x00010000
_X32_BIT = 0x40000000

# By platform.machine(): column of the table, AUDIT_ARCH, the numbers of clone, clone3, execveat.
_MACHINES = MappingProxyType(
    {"x86_64": (0, 0xC000003E, 56, 435, 322), "aarch64": (1, 0xC00000B7, 220, 435, 281)}
)


def filter_for(machine: str) -> bytes:
    """A BPF program (an array of struct sock_filter) for PR_SET_SECCOMP.

    One execveat is allowed, by which the program's interpreter starts. Threads are: clone with
    CLONE_THREAD; clone3 fails with ENOSYS, which makes the C library use clone, whose flags a
    filter can see. Raises KeyError for another architecture.
    """
    column, architecture, clone, clone3, execveat = _MACHINES[machine]
    numbers = (pair[column] for pair in _ALLOWED.values())
    allowed = sorted(number for number in numbers if number is not None)
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in allowed:
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program += [
        (_JUMP_EQUAL, 0, 1, clone3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_JUMP_EQUAL, 0, 3, execveat),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 0, 5, EXEC_DESCRIPTOR),
        (_RETURN, 0, 0, _ALLOW),
        (_JUMP_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_ANY_BIT, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def is_known(machine: str) -> bool:
    """Whether there is a filter for this `platform.machine()`."""
    return machine in _MACHINES
