"""What this process holds of the machine's memory."""

import ctypes
import mmap

# glibc's own name for it is M_MMAP_THRESHOLD, in malloc.h.
_MAPPED_FROM = -3
_MAPPED_FROM_BYTES = 1 << 20


def resident_bytes() -> int | None:
    """This process's memory now, None where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return None


def give_back_memory() -> None:
    """Hand freed memory to the system, where the C library (glibc) would keep it for itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def map_large_blocks() -> None:
    """Let glibc take large blocks from the system one by one, so that freeing them frees memory.

    By itself it stops doing so for sizes that were freed once: then they leave holes.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MAPPED_FROM, _MAPPED_FROM_BYTES)
