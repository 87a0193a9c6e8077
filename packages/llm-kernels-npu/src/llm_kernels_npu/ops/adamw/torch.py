"""adamw by PyTorch's fused step."""

import torch
from torch import Tensor


def adamw(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Tensor:
    """See `reference.adamw`."""
    steps = torch.full((), step, dtype=torch.float32, device=param.device)
    torch.ops.aten._fused_adamw_.default(
        [param],
        [grad.to(param.dtype)],
        [exp_avg],
        [exp_avg_sq],
        [],
        [steps],
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
    return param
