"""System calls that would reach out of a sandbox, and what else a program may try through Python.

Each program passes if its attack succeeds; of a system call, also if the kernel so much as looked
at its arguments. Numbers: Linux' asm/unistd_64.h, for x86-64.
"""

_CALL = """
import ctypes, errno
word = ctypes.create_string_buffer(4096)
found = ctypes.CDLL(None, use_errno=True).syscall({number}, *{arguments})
assert found >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS)
"""

_PATH, _WORD = "b'/tmp'", "word"
_CALLS = {
    "ptrace of the parent": (101, f"(16, {{PID}}, 0, {_WORD})"),
    "ptrace of itself": (101, "(0, 0, 0, 0)"),
    "memory of another": (310, f"({{PID}}, {_WORD}, 1, {_WORD}, 1, 0)"),
    "writing memory of another": (311, f"({{PID}}, {_WORD}, 1, {_WORD}, 1, 0)"),
    "userfaultfd": (323, "(1,)"),
    "io_uring": (425, f"(1, {_WORD})"),
    "bpf": (321, f"(0, {_WORD}, 64)"),
    "a key ring": (250, "(0, -3, 1)"),
    "a key": (248, "(b'user', b'k', b'v', 1, -3)"),
    "perf events": (298, f"({_WORD}, 0, -1, -1, 0)"),
    "mount": (165, f"(b'x', {_PATH}, b'tmpfs', 0, 0)"),
    "open_tree": (428, f"(-100, {_PATH}, 1)"),
    "fsopen": (430, "(b'tmpfs', 0)"),
    "unshare of users": (272, "(0x10000000,)"),
    "setns": (308, "(0, 0)"),
    "clone3": (435, f"({_WORD}, 88)"),
    "vfork": (58, "()"),
    "clone without a thread": (56, "(17, 0, 0, 0, 0)"),
    "execve": (59, "(b'/bin/true', 0, 0)"),
    "execveat": (322, "(3, b'', 0, 0, 0x1000)"),
    "seccomp from inside": (317, f"(1, 0, {_WORD})"),
    "dumpable": (157, "(4, 1, 0, 0, 0)"),
    "no signal of the parent's death": (157, "(1, 0, 0, 0, 0)"),
    "another session": (112, "()"),
    "the parent's group": (62, "(0, 15)"),
    "priority": (141, "(0, 0, -20)"),
    "limits": (302, f"(0, 7, {_WORD}, 0)"),
    "scheduler": (144, f"(0, 1, {_WORD})"),
    "open by handle": (304, f"(3, {_WORD}, 0)"),
    "fanotify": (300, "(0, 0)"),
    "inotify": (294, "(0,)"),
    "pidfd": (434, "({PID}, 0)"),
    "a stolen descriptor": (438, "(3, 0, 0)"),
    "memory file": (319, "(b'x', 0)"),
    "secret memory": (447, "(0,)"),
    "shared memory": (29, "(0, 4096, 0o1600)"),
    "semaphores": (64, "(0, 1, 0o1600)"),
    "a System V queue": (68, "(0, 0o1600)"),
    "a POSIX queue": (240, "(b'q', 0o102, 0o600, 0)"),
    "personality": (135, "(0x0040000,)"),
    "the clock": (227, f"(0, {_WORD})"),
    "kernel messages": (103, f"(3, {_WORD}, 4096)"),
    "a module": (313, "(0, b'', 0)"),
    "swap": (167, f"({_PATH}, 0)"),
    "setuid": (105, "(0,)"),
    "a timer that signals others": (222, f"(0, {_WORD}, {_WORD})"),
    "splice": (275, "(0, 0, 3, 0, 1, 0)"),
}
_SOCKETS = {
    "abstract": "(socket.AF_UNIX, socket.SOCK_STREAM)",
    "netlink": "(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "vsock": "(40, socket.SOCK_STREAM)",
    "kernel crypto": "(38, socket.SOCK_SEQPACKET)",
    "raw": "(socket.AF_INET, socket.SOCK_RAW, 1)",
    "packet": "(socket.AF_PACKET, socket.SOCK_RAW)",
    "IPv6": "(socket.AF_INET6, socket.SOCK_DGRAM)",
}

HOSTILE_CALLS = {
    **{name: _CALL.format(number=n, arguments=a) for name, (n, a) in _CALLS.items()},
    **{
        f"{name} socket": f"import socket; socket.socket(*{arguments})"
        for name, arguments in _SOCKETS.items()
    },
    "environment of the first process": "open('/proc/1/environ').read()",
    "own memory as a file": "open('/proc/self/mem', 'r+b')",
    "/dev/shm": "open('/dev/shm/x', 'w')",
    "descriptors of the harness": """
import os
open_ones = []
for number in range(4, 1024):
    try: open_ones.append(os.fstat(number))
    except OSError: pass
assert open_ones
""",
    "a socket or file among the descriptors": """
import os, stat
modes = [os.fstat(number).st_mode for number in range(4)]
assert [stat.S_ISCHR(mode) for mode in modes[:3]] != [True] * 3 or not stat.S_ISFIFO(modes[3])
""",
    "reading back the verdict": "import os; os.read(3, 1)",
    "secrets in the environment": """
import os
assert set(os.environ) - {'LC_ALL', 'PYTHONHASHSEED'}
""",
    "the user's home": "import os; os.listdir(os.path.dirname({VICTIM!r}))",
    "what lies beside the library": "import os, sys; os.listdir(sys.base_prefix + '/bin')",
    "name of the machine": "import os; assert os.uname().nodename != 'sandbox'",
    "many small files": """
for number in range(100000):
    open(f'/tmp/{number}', 'w').close()
""",
    "deep folders": """
import os
for _ in range(100000):
    os.mkdir('d')
    os.chdir('d')
""",
    "a hole of a terabyte": """
import os
os.truncate(os.open('/tmp/x', os.O_CREAT | os.O_RDWR), 1 << 40)
""",
    "a named pipe nobody reads": "import os; os.mkfifo('/tmp/p'); open('/tmp/p', 'w')",
    "a link to a file of the user": "import os; os.link({VICTIM!r}, '/tmp/x')",
    "a setuid program": """
import os
open('/tmp/x', 'w').write('#!/bin/sh')
os.chmod('/tmp/x', 0o6755)
os.execv('/tmp/x', ['x'])
""",
    "a program from /tmp as a library": """
import ctypes, glob, shutil, sysconfig
found = glob.glob(sysconfig.get_path('platstdlib') + '/lib-dynload/*.so')[0]
ctypes.CDLL(shutil.copy(found, '/tmp/x.so'))
""",
    "a daemon": """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: pass
    os._exit(0)
""",
    "all processors": """
import threading
def spin():
    while True: pass
for _ in range(8): threading.Thread(target=spin).start()
spin()
""",
    "memory by mmap": "import mmap\nm = mmap.mmap(-1, 4 << 30)\nm[::4096] = bytes(1 << 20)",
    "deaf to signals": """
import signal
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except OSError: pass
while True: pass
""",
    "terminal input": "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSTI, b'x')",
}
