"""The specification of adamw."""

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
    """One step, written to param, exp_avg and exp_avg_sq; returns param. It has no gradient.

    All four of one shape; param and the averages float32 (or all float64), grad of any float type.
    step counts from 1. With g the gradient, all from the old values::

        exp_avg    = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g²
        param      = param * (1 - lr * weight_decay)
                     - lr * (exp_avg / (1 - beta1^step)) / (√(exp_avg_sq / (1 - beta2^step)) + eps)
    """
    slope = grad.to(param.dtype)
    exp_avg.mul_(beta1).add_(slope * (1 - beta1))
    exp_avg_sq.mul_(beta2).add_(slope.square() * (1 - beta2))
    mean = exp_avg / (1 - beta1**step)
    deviation = (exp_avg_sq / (1 - beta2**step)).sqrt()
    return param.mul_(1 - lr * weight_decay).sub_(lr * mean / (deviation + eps))
