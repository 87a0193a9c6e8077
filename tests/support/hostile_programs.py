"""Programs that attack whoever runs them. Each passes if its attack succeeds.

`VICTIM` stands for a file of the user's, `PORT` for a port somebody listens on, `PID` for the
process that runs the test.
"""

HOSTILE = {
    "fork bomb": """
import os
for _ in range(64):
    if os.fork() == 0:
        os._exit(0)
""",
    "subprocess": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "exec": "import os, sys; os.execv(sys.executable, [sys.executable, '-c', ''])",
    "memory hog": "data = bytearray(8 << 30)\nfor i in range(0, len(data), 4096): data[i] = 1",
    "thread bomb": """
import threading, time
for _ in range(20000):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
""",
    "infinite loop": "while True: pass",
    "sleep for ever": "import time; time.sleep(3600)",
    "read a file of the user": "open({VICTIM!r}).read()",
    "read the passwords": "open('/etc/passwd').read()",
    "write to the root": "open('/pwned', 'w').write('x')",
    "write over the library": "import os; open(os.__file__, 'a').write('#')",
    "fill the disk": """
for number in range(100):
    with open(f'/tmp/{number}', 'wb') as file:
        file.write(bytes(1 << 20))
""",
    "one huge file": "open('/tmp/x', 'wb').truncate(1 << 40)\nopen('/tmp/x','rb').read(1)",
    "symlink to a file of the user": """
import os
os.symlink({VICTIM!r}, '/tmp/link')
open('/tmp/link').read()
""",
    "climb out with ..": "open('/tmp/' + '../' * 20 + {VICTIM!r}.lstrip('/')).read()",
    "move the victim away": "import os; os.rename({VICTIM!r}, '/tmp/mine')",
    "TCP to the machine": """
import socket
socket.create_connection(('127.0.0.1', {PORT}), timeout=2)
""",
    "UDP to the world": """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))
""",
    "unix socket": "import socket; socket.socketpair()",
    "kill the parent": "import os; os.kill(os.getppid() or {PID}, 9)",
    "kill everybody": "import os; os.kill(-1, 9)",
    "kill the test": "import os; os.kill({PID}, 9)",
    "environment of the parent": "open('/proc/{PID}/environ').read()",
    "memory of the parent": "open('/proc/self/mem', 'r+b'); open('/proc/{PID}/mem', 'r+b')",
    "mount proc again": """
import ctypes, os
os.mkdir('/tmp/p')
assert ctypes.CDLL(None).mount(b'proc', b'/tmp/p', b'proc', 0, None) == 0
""",
    "new user namespace": """
import ctypes
assert ctypes.CDLL(None).unshare(0x10000000) == 0
""",
    "ptrace": "import ctypes; assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0",
    "chroot": "import os; os.chroot('/tmp')",
    "device nodes": "import os, stat; os.mknod('/tmp/sda', 0o600 | stat.S_IFBLK, os.makedev(8, 0))",
    "memory file": "import os; os.memfd_create('x')",
    "shared memory": """
import ctypes
assert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) >= 0
""",
    "32-bit system call": """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
# mov eax, 2 (fork); int 0x80; ret
code.write(bytes([0xB8, 2, 0, 0, 0, 0xCD, 0x80, 0xC3]))
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
assert ctypes.CFUNCTYPE(ctypes.c_int)(address)() >= 0
""",
    "leave early": "import os; os._exit(0)",
    "leave politely": "raise SystemExit(0)",
    "flood the verdict": """
import os
while True:
    os.write(3, b'x' * 65536)
""",
    "forge the verdict": "import os; os.write(3, b'0' * 16); os._exit(0)",
    "close everything": "import os; os.closerange(0, 1000)",
    "crash": "import ctypes; ctypes.string_at(0)",
    "deep recursion": "import sys; sys.setrecursionlimit(1 << 30)\ndef f(): f()\nf()",
}
