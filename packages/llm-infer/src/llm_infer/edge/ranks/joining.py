"""Ranks of one machine meet: torch.distributed's process group, threads and devices."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import MappingProxyType

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]: its home

HOST = "127.0.0.1"
# Nothing but computation of a step lies between two collectives, and it is the same on all ranks.
_TIMEOUT = timedelta(seconds=300)
_BACKENDS: Mapping[str, str] = MappingProxyType({"cpu": "gloo", "cuda": "nccl", "npu": "hccl"})
_LOOPBACKS = ("lo", "lo0")


def new_store(size: int) -> TCPStore:
    """Where ranks find each other, on a free port: rank 0 keeps it."""
    return TCPStore(HOST, 0, size, is_master=True, wait_for_workers=False, timeout=_TIMEOUT)


def store_at(port: int, size: int) -> TCPStore:
    """The store of rank 0."""
    return TCPStore(HOST, port, size, is_master=False, timeout=_TIMEOUT)


def join(store: TCPStore, *, rank: int, size: int, device: str) -> None:
    """Meet all other ranks; `device` is this one's, such as `cpu` or `cuda:1`."""
    place = torch.device(device)
    if place.type != "cpu":
        getattr(torch, place.type).set_device(place)
    elif found := [name for _, name in socket.if_nameindex() if name in _LOOPBACKS]:
        # Otherwise gloo listens at the address of the machine's name, which may have none.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found[0])
    with _quiet_stdout():
        dist.init_process_group(
            _BACKENDS[place.type], store=store, rank=rank, world_size=size, timeout=_TIMEOUT
        )


def leave() -> None:
    """Forget the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share_threads(size: int) -> None:
    """Of a CPU's cores each rank takes its part, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Gloo tells stdout whom it met, and answers belong there."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
