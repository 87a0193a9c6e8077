"""The first second of a command: what takes long and needs no Python goes on beside its imports.

`import torch` spends a third of its time in the dynamic loader, and weights are read from files.
Neither needs the interpreter's lock.
"""

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

# As torch/__init__.py loads them: the first for all libraries to see, the others as its needs.
_LIBRARIES = (
    ("libtorch_global_deps.so", os.RTLD_NOW | os.RTLD_GLOBAL),
    ("libtorch_cpu.so", os.RTLD_NOW),
    ("libtorch_cuda.so", os.RTLD_NOW),
)
_CHUNK_BYTES = 16 << 20
_MEMORY_SHARE = 0.5


@contextmanager
def starting(folder: Path) -> Iterator[None]:
    """For what imports torch and loads the model in `folder`; in the end its files were read once.

    Python's collector of cycles rests meanwhile: imports make many objects and no garbage.
    """
    libraries = threading.Thread(target=load_torch_libraries, daemon=True)
    files = threading.Thread(target=read_through, args=(weight_files(folder),), daemon=True)
    was_enabled = gc.isenabled()
    gc.disable()
    libraries.start()
    files.start()
    try:
        yield
        files.join()
    finally:
        if was_enabled:
            gc.enable()
        # A process must not end while its loader works.
        libraries.join()


def load_torch_libraries() -> None:
    """Load torch's shared libraries; `import torch` then finds them in the process.

    Where one is missing nothing more is done, and `import torch` does what it does.
    """
    if sys.platform != "linux" or "torch" in sys.modules:
        return
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return
    # ctypes.CDLL would hold the interpreter's lock; a foreign function called through it does not.
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for name, mode in _LIBRARIES:
        path = Path(spec.origin).parent / "lib" / name
        if not path.is_file() or not dlopen(os.fsencode(path), mode):
            return


def weight_files(folder: Path) -> list[Path]:
    """The weights of a Hugging Face folder, where all fit into half of the memory; else none."""
    files = sorted(folder.glob("*.safetensors"))
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return files if stored_bytes(files) <= memory_bytes * _MEMORY_SHARE else []


def stored_bytes(files: list[Path]) -> int:
    """Their sizes together."""
    return sum(path.stat().st_size for path in files)


def read_through(files: list[Path]) -> None:
    """Bring files into the system's cache. What cannot be read is for their reader to tell."""
    chunk = bytearray(_CHUNK_BYTES)
    for path in files:
        try:
            with path.open("rb", buffering=0) as file:
                while file.readinto(chunk):
                    pass
        except OSError:
            return
