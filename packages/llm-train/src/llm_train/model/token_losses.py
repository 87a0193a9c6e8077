"""The loss of every token by a run's fused operators, of logits that exist or are yet to be."""

from functools import partial

import torch
import torch.distributed as dist

from llm_train.kernels import Kernels


def token_losses(
    kernels: Kernels, labels_BT: torch.Tensor, logits_TBV: torch.Tensor, *, group: dist.ProcessGroup
) -> torch.Tensor:
    """[B, T] in fp32; every rank of the tensor-parallel `group` has as many of the words."""
    logits_NV, targets_N = logits_TBV.flatten(0, 1), labels_BT.T.flatten()
    if group.size() == 1:
        losses = kernels.cross_entropy(logits_NV, targets_N)
    else:
        losses = kernels.vocab_parallel_cross_entropy(
            logits_NV,
            targets_N,
            vocab_start=group.rank() * logits_NV.shape[1],
            all_reduce_max=partial(_reduced, group=group, operation=dist.ReduceOp.MAX),
            all_reduce_sum=partial(_reduced, group=group, operation=dist.ReduceOp.SUM),
        )
    return losses.view(labels_BT.T.shape).T.contiguous()


def projected_losses(
    kernels: Kernels,
    labels_BT: torch.Tensor,
    hidden_TBH: torch.Tensor,
    weight_VH: torch.Tensor,
    *,
    chunk: int,
) -> torch.Tensor:
    """[B, T] in fp32; of the logits `hidden · weightᵀ` those of `chunk` tokens exist at a time."""
    losses = kernels.linear_cross_entropy(
        hidden_TBH.flatten(0, 1), weight_VH, labels_BT.T.flatten(), chunk_rows=chunk
    )
    return losses.view(labels_BT.T.shape).T.contiguous()


def _reduced(
    x: torch.Tensor, *, group: dist.ProcessGroup, operation: dist.ReduceOp.RedOpType
) -> torch.Tensor:
    dist.all_reduce(x, op=operation, group=group)
    return x
