"""The device a rank trains on: chosen, made ready for megatron-core, joined to its peers."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from llm_train.edge.groups import quiet_gloo

if TYPE_CHECKING:
    import torch

    from llm_train.edge.patches import Patches


class DeviceKind(StrEnum):
    """What megatron-core can run on here."""

    CPU = "cpu"
    CUDA = "cuda"
    NPU = "npu"


class DeviceError(RuntimeError):
    """The device asked for is not here."""


BACKENDS = {
    DeviceKind.CPU: "gloo",
    DeviceKind.CUDA: "cpu:gloo,cuda:nccl",
    DeviceKind.NPU: "cpu:gloo,npu:hccl",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnvironment:
    """Where this process stands among its peers, as torchrun and our launcher say it."""

    rank: int
    world_size: int
    local_rank: int


def rank_environment() -> RankEnvironment:
    """RANK, WORLD_SIZE and LOCAL_RANK, or a world of one."""
    return RankEnvironment(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


def resolve(name: str) -> DeviceKind:
    """The device kind that `auto`, `cpu`, `cuda` or `npu` means on this machine.

    `auto` takes CUDA, then NPU, then CPU. Raises DeviceError for a named device that is absent.
    """
    import torch

    has_cuda, has_npu = torch.cuda.is_available(), _has_npu()
    if name == "auto":
        return DeviceKind.CUDA if has_cuda else DeviceKind.NPU if has_npu else DeviceKind.CPU
    kind = DeviceKind(name)
    if (kind is DeviceKind.CUDA and not has_cuda) or (kind is DeviceKind.NPU and not has_npu):
        found = ["cuda"] * has_cuda + ["npu"] * has_npu + ["cpu"]
        raise DeviceError(
            f"device={kind}: found {', '.join(found)}; choose one of those or auto"
            + ("; for npu: pip install 'llm-train[npu]'" if kind is DeviceKind.NPU else "")
        )
    return kind


def _has_npu() -> bool:
    import importlib.util

    import torch

    if importlib.util.find_spec("torch_npu") is None:
        return False
    import torch_npu  # noqa: F401  # pyright: ignore[reportMissingImports]  # adds torch.npu

    return bool(torch.npu.is_available())  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def device_session(
    kind: DeviceKind, *, timeout_s: float = 600.0, is_deterministic: bool = False
) -> Iterator["torch.device"]:
    """This rank's device, patched for megatron-core and in the process group; undone after.

    A rank that waits for another gives up after `timeout_s`.
    """
    import torch
    import torch.distributed as dist

    from llm_train.edge.patches import Patches, patch_cpu, patch_gaps, patch_npu

    place = rank_environment()
    patches = Patches()
    if kind is DeviceKind.CPU:
        patch_cpu(patches)
    elif kind is DeviceKind.NPU:
        patch_npu(patches)
    patch_gaps(patches)
    if kind is DeviceKind.CPU:
        device = torch.device("cpu")
    else:
        device = torch.device(kind.value, place.local_rank)
        getattr(torch, kind.value).set_device(device)
    if is_deterministic:
        _sum_in_one_order(patches)
    with quiet_gloo():
        _join(kind, place, timeout_s)
    try:
        yield device
    finally:
        patches.undo()
        if is_deterministic:
            torch.use_deterministic_algorithms(False)
        if dist.is_initialized():
            dist.destroy_process_group()


def _sum_in_one_order(patches: "Patches") -> None:
    """No operation of torch whose result differs between runs, and none that rounds to tf32."""
    import torch

    torch.use_deterministic_algorithms(True)
    for owner in (torch.backends.cuda.matmul, torch.backends.cudnn):
        patches.set(owner, "allow_tf32", False)
    patches.set(torch.backends.cudnn, "benchmark", False)
    patches.set(torch.backends.cudnn, "deterministic", True)


def device_name(device: "torch.device") -> str:
    """What the device's own library calls it, `cpu` for a CPU."""
    import torch

    return "cpu" if device.type == "cpu" else getattr(torch, device.type).get_device_name(device)


def memory_bytes(device: "torch.device") -> int:
    """The most that was allocated on a device so far; of a CPU, the most that was resident."""
    import torch

    if device.type != "cpu":
        return int(getattr(torch, device.type).max_memory_allocated(device))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _join(kind: DeviceKind, place: RankEnvironment, timeout_s: float) -> None:
    import torch.distributed as dist

    if place.world_size > 1 or "MASTER_ADDR" in os.environ:
        dist.init_process_group(
            BACKENDS[kind],
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=timeout_s),
        )
    else:
        dist.init_process_group(
            BACKENDS[kind],
            store=dist.HashStore(),  # pyright: ignore[reportPrivateImportUsage]  # its public home
            rank=0,
            world_size=1,
            timeout=timedelta(seconds=timeout_s),
        )
