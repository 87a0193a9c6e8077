"""The tensors that a process holds, as its garbage collector sees them."""

import gc

import torch


def live_tensors() -> list[torch.Tensor]:
    """Every tensor with bytes of its own, subclasses too, after garbage was collected.

    An undefined tensor is met now and then in a process forked from a busy one: it has no storage
    and raises when asked for it.
    """
    gc.collect()
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    return [one for one in tensors if torch._C._has_storage(one)]
