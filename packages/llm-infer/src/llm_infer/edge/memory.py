"""How much memory is free, and how much of it a cache of keys and values takes."""

import os

import torch

_CACHE_SHARE = 0.25
# No more than this many texts of full length: memory that is never used helps nobody.
_FULL_TEXTS = 16


def cache_tokens(
    *, context: int, token_bytes: int, device: torch.device, reserved_bytes: int = 0
) -> int:
    """Tokens that a quarter of the free memory holds, at most sixteen times the context.

    `reserved_bytes` of it are for something else, such as weights that are still to come.
    """
    free_bytes = max(0, available_bytes(device) - reserved_bytes)
    room = int(free_bytes * _CACHE_SHARE) // max(1, token_bytes)
    return min(room, context * _FULL_TEXTS)


def available_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
