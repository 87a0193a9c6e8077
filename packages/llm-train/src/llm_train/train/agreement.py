"""What all ranks must know together after a step, in one small exchange between their hosts."""

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """The same on every rank. `stop` is the number of the signal that asked, 0 for none."""

    stop: int
    is_save_due: bool
    memory_bytes: int


def agree(*, stop: int, is_save_due: bool, memory_bytes: int) -> Agreed:
    """Join what every rank has: any stop, rank 0's clock, the largest memory.

    A signal may reach ranks on both sides of a step, and only a step that all end after is saved.
    Costs nothing on one rank.
    """
    if dist.get_world_size() == 1:
        return Agreed(stop=stop, is_save_due=is_save_due, memory_bytes=memory_bytes)
    is_clock = dist.get_rank() == 0
    # On the host: a device would have to be waited for. Below 2^53 the numbers are exact.
    found = torch.tensor(
        [stop, is_save_due and is_clock, memory_bytes], dtype=torch.float64, device="cpu"
    )
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    signal, due, memory = found.tolist()
    return Agreed(stop=int(signal), is_save_due=bool(due), memory_bytes=int(memory))
