"""adamw by `torch_npu.npu_apply_adam_w`."""

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
    torch.ops.npu.npu_apply_adam_w.out(
        # The powers before this step: the fused operator multiplies them by the betas.
        beta1 ** (step - 1),
        beta2 ** (step - 1),
        lr,
        weight_decay,
        beta1,
        beta2,
        eps,
        grad.to(param.dtype),
        None,
        False,
        False,
        out=[param, exp_avg, exp_avg_sq],
    )
    return param
