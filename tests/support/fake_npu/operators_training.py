"""What torch_npu's operators for gradient sums and optimizers compute, on CPU tensors."""

import torch


def grouped_matmul_add_(
    input,  # noqa: A002  # the schema's name
    x,
    weight,
    group_list,
    transpose_x,
    transpose_weight,
    group_type,
    group_list_type,
):
    """Each group of rows adds its `x.T @ weight` to its own [M, N] of the float32 sums."""
    assert (transpose_x, transpose_weight, group_type) == (True, False, 2)
    assert group_list_type in (None, 0), "groups are given by their ends"
    assert input.dtype is torch.float32
    assert input.shape == (len(group_list), x.shape[1], weight.shape[1]), input.shape
    assert x.dtype is weight.dtype
    assert x.dtype in (torch.float16, torch.bfloat16), x.dtype
    start = 0
    for total, end in zip(input, group_list.tolist(), strict=True):
        total += x[start:end].float().T @ weight[start:end].float()
        start = end
    return input


def apply_adam_w(
    beta1_power, beta2_power, lr, weight_decay, beta1, beta2, epsilon, grad, max_grad_norm,
    amsgrad, maximize, out,
):  # fmt: skip
    """As ApplyAdamW: the powers are those before the step, and are multiplied here."""
    if max_grad_norm is not None or amsgrad or maximize:
        raise NotImplementedError("npu_apply_adam_w beyond plain AdamW")
    var, m, v = out
    assert var.is_contiguous()
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    deviation = (v / (1 - beta2_power * beta2)).sqrt_().add_(epsilon)
    var.mul_(1 - lr * weight_decay)
    var.addcdiv_(m, deviation, value=-lr / (1 - beta1_power * beta1))
    return var, m, v


TRAINING = {
    "npu_grouped_matmul_add_": grouped_matmul_add_,
    "npu_apply_adam_w": apply_adam_w,
}
"""Operators by their name in the `npu` namespace."""
