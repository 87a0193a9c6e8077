"""The tensors that a process holds, as its garbage collector sees them."""

import gc
from collections.abc import Iterable

import torch


def live_tensors() -> list[torch.Tensor]:
    """Every tensor, subclasses too, after garbage was collected."""
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """What their storages take, each counted once.

    A process forked from a busy one meets undefined tensors now and then, what a collection of its
    parent left of a cycle: they hold nothing, whether they stand alone or are part of another.
    """
    storages = {}
    for one in tensors:
        try:
            storage = one.untyped_storage()
        except NotImplementedError:  # "Cannot access storage of UndefinedTensorImpl"
            continue
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
