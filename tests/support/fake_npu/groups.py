"""Point-to-point messages of the HCCL groups, carried by gloo.

torch_npu hands a batch of sends and receives to the group's own method, past the dispatcher, so
the mode does not see it. Collectives need nothing: the mode gives them CPU tensors.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist


class _Batch:
    """All works of one batch as one."""

    def __init__(self, works: Sequence[dist.Work]) -> None:
        self._works = works

    def wait(self, *_timeout: object) -> bool:
        for work in self._works:
            work.wait()
        return True

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self._works)


def carry_by_gloo(hccl_group: type) -> None:
    """Give that class a `batch_isend_irecv` that works without HCCL."""
    hccl_group.batch_isend_irecv = _batch_isend_irecv  # pyright: ignore[reportAttributeAccessIssue]


def _batch_isend_irecv(
    backend: object, kinds: Sequence[str], tensors: Sequence[torch.Tensor], peers: Sequence[int]
) -> _Batch:
    group = _group_of(backend)
    works: list[dist.Work] = []
    for kind, tensor, peer in zip(kinds, tensors, peers, strict=True):
        work = (
            dist.isend(tensor, group=group, group_dst=peer)
            if kind == "isend"
            else dist.irecv(tensor, group=group, group_src=peer)
        )
        assert work is not None
        works.append(work)
    return _Batch(works)


def _group_of(backend: object) -> dist.ProcessGroup:
    device = torch.device("npu")
    for group in dist.distributed_c10d._world.pg_map:
        has_hccl = "npu" in dist.get_backend_config(group)
        if has_hccl and group._get_backend(device) is backend:
            return group
    raise LookupError(f"no process group has the backend {backend}")
