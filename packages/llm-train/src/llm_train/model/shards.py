"""Parameters whose rows are shared out among data-parallel ranks: DTensors cut on axis 0, as
torch's FSDP2 makes them. Every other tensor is whole on its rank.
"""

from functools import partial

import torch
from torch.distributed.tensor import DTensor


def is_shared_out(tensor: torch.Tensor) -> bool:
    """Each data-parallel rank has other rows of it."""
    return isinstance(tensor, DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What of a tensor this rank keeps, sharing its memory."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor.detach()


def rows(tensor: torch.Tensor) -> slice:
    """The rows that `local` has: as many on every rank, fewer or none on the last ones."""
    if not isinstance(tensor, DTensor):
        return slice(0, len(tensor))
    most = -(-len(tensor) // tensor.device_mesh.size())
    start = min(most * tensor.device_mesh.get_local_rank(), len(tensor))
    return slice(start, start + len(local(tensor)))


def put(tensor: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy a tensor of the same shape into what this rank keeps."""
    target = local(tensor)
    target.copy_(whole[rows(tensor)] if whole.dim() else whole)


def let_learn(parameter: torch.Tensor, which: torch.Tensor) -> None:
    """Let some entries alone have a gradient: booleans over what this rank keeps."""
    if isinstance(parameter, DTensor):
        # Rows' gradients are not autograd's: where they are summed, `learning` is asked.
        parameter.learns = which  # pyright: ignore[reportAttributeAccessIssue]  # a mark
    else:
        parameter.register_hook(partial(torch.mul, which))


def learning(parameter: torch.Tensor) -> torch.Tensor | None:
    """Which entries of this rank's rows have a gradient; None = all."""
    return getattr(parameter, "learns", None)
