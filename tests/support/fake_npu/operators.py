"""What torch_npu's own operators compute, from their documentation, on CPU tensors.

Each takes the schema's arguments by name. Backward operators are written from the formulas,
not through autograd, so that they check the autograd nodes of torch_npu which call them.
"""

import torch
from torch import Tensor

from fake_npu.operators_attention import ATTENTION
from fake_npu.operators_experts import EXPERTS
from fake_npu.operators_sparse import SPARSE
from fake_npu.operators_training import TRAINING


def rms_norm(input, gamma, epsilon):  # noqa: A002  # the schema's name
    rstd = torch.rsqrt(input.float().square().mean(-1, keepdim=True) + epsilon)
    return (input.float() * rstd * gamma.float()).to(input.dtype), rstd


def rms_norm_backward(dy, input, gamma, rstd):  # noqa: A002
    normed = input.float() * rstd
    scaled = dy.float() * gamma.float()
    dx = rstd * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    return dx.to(input.dtype), (dy.float() * normed).flatten(0, -2).sum(0)


def add_rms_norm(x1, x2, gamma, epsilon):
    total = (x1.float() + x2.float()).to(x1.dtype)
    return *rms_norm(total, gamma, epsilon), total


def swiglu(input, dim):  # noqa: A002
    gate, up = input.float().chunk(2, dim)
    return (gate * torch.sigmoid(gate) * up).to(input.dtype)


def swiglu_backward(grad_output, input, dim):  # noqa: A002
    gate, up = input.float().chunk(2, dim)
    dy, s = grad_output.float(), torch.sigmoid(gate)
    d_gate = dy * up * s * (1 + gate * (1 - s))
    return torch.cat((d_gate, dy * gate * s), dim).to(input.dtype)


def geglu(input, dim, approximate, activate_left):  # noqa: A002
    gate, up = _gate_and_up(input, dim, activate_left)
    gelu = torch.nn.functional.gelu(gate, approximate="tanh" if approximate else "none")
    return (gelu * up).to(input.dtype), gelu.to(input.dtype)


def geglu_grad(grad_output, input, gelu, dim, approximate, activate_left):  # noqa: A002
    gate, up = _gate_and_up(input, dim, activate_left)
    if approximate:
        steepness = (2 / torch.pi) ** 0.5
        t = torch.tanh(steepness * (gate + 0.044715 * gate**3))
        bend = steepness * (1 + 3 * 0.044715 * gate**2)
        slope = 0.5 * (1 + t) + 0.5 * gate * (1 - t * t) * bend
    else:
        density = torch.exp(-0.5 * gate**2) / (2 * torch.pi) ** 0.5
        slope = 0.5 * (1 + torch.erf(gate / 2**0.5)) + gate * density
    dy = grad_output.float()
    halves = (dy * up * slope, dy * gelu.float())
    return torch.cat(halves if activate_left else halves[::-1], dim).to(input.dtype)


def _gate_and_up(x: Tensor, dim: int, activate_left: bool):
    first, second = x.float().chunk(2, dim)
    return (first, second) if activate_left else (second, first)


def rotary_mul(input, r1, r2, rotary_mode, rotate):  # noqa: A002
    if rotate is not None:
        raise NotImplementedError("npu_rotary_mul with a rotate matrix")
    x = input.float()
    return (r1.float() * x + r2.float() * _partner(x, rotary_mode)).to(input.dtype)


def rotary_mul_backward(grad, input, r1, r2, rotary_mode):  # noqa: A002
    dy, x = grad.float(), input.float()
    # The partner map is a rotation by a quarter turn: its transpose is its negative.
    dx = dy * r1.float() - _partner(dy * r2.float(), rotary_mode)
    d_r1, d_r2 = (
        (dy * x).sum_to_size(r1.shape),
        (dy * _partner(x, rotary_mode)).sum_to_size(r2.shape),
    )
    return dx.to(input.dtype), d_r1.to(input.dtype), d_r2.to(input.dtype)


def _partner(x: Tensor, mode: str) -> Tensor:
    if mode == "half":
        x1, x2 = x.chunk(2, -1)
        return torch.cat((-x2, x1), -1)
    assert mode == "interleave"
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def cross_entropy_loss(
    input,  # noqa: A002
    target,
    weight,
    reduction,
    ignore_index,
    label_smoothing,
    lse_square_scale_for_zloss,
    return_zloss,
):
    if weight is not None or reduction != "none" or label_smoothing or return_zloss:
        raise NotImplementedError("npu_cross_entropy_loss beyond plain losses a row")
    del lse_square_scale_for_zloss
    log_prob = torch.log_softmax(input.float(), -1)
    ignored = target == ignore_index
    picked = log_prob.gather(1, target.masked_fill(ignored, 0)[:, None])[:, 0]
    loss = (-picked).masked_fill(ignored, 0.0)
    nothing = torch.zeros_like(loss)
    results = (loss, log_prob, nothing, nothing.clone())
    return tuple(result.to(input.dtype) for result in results)


def cross_entropy_loss_backward(grad_loss, log_prob, target, ignore_index, **_unused):
    ignored = target == ignore_index
    one_hot = torch.nn.functional.one_hot(target.masked_fill(ignored, 0), log_prob.shape[1])
    slope = (log_prob.float().exp() - one_hot) * grad_loss.float()[:, None]
    return slope.masked_fill(ignored[:, None], 0.0).to(log_prob.dtype)


def repeat_interleave_backward_int(grad, input, repeats, dim):  # noqa: A002
    if dim is None:
        return grad.reshape(input.numel(), repeats).sum(1).reshape(input.shape)
    axis = dim % input.dim()
    return grad.unflatten(axis, (input.shape[axis], repeats)).sum(axis + 1)


def matmul_backward(grad, self, other, mask):
    """torch_npu differentiates matmul as one operator; the CPU has no kernel of that name."""
    left = self[None] if self.dim() == 1 else self
    right = other[:, None] if other.dim() == 1 else other
    grad = grad.unsqueeze(-2) if self.dim() == 1 else grad
    grad = grad.unsqueeze(-1) if other.dim() == 1 else grad
    d_self = (grad @ right.mT).sum_to_size(left.shape).reshape(self.shape) if mask[0] else None
    d_other = (left.mT @ grad).sum_to_size(right.shape).reshape(other.shape) if mask[1] else None
    return d_self, d_other


def gather_backward(grad, self_size, dim, index, sparse_grad):
    assert not sparse_grad
    return grad.new_zeros(self_size).scatter_add(dim, index, grad)


def format_cast(input, **_unused):  # noqa: A002
    """Memory layouts are the device's own business."""
    return input


def dtype_cast(input, dtype):  # noqa: A002
    return input.to(dtype)


def dtype_cast_backward(grad, dtype):
    return grad.to(dtype)


FUSED = {
    **ATTENTION,
    **EXPERTS,
    **SPARSE,
    **TRAINING,
    "npu_rms_norm": rms_norm,
    "npu_rms_norm_backward": rms_norm_backward,
    "npu_add_rms_norm": add_rms_norm,
    "npu_geglu": geglu,
    "npu_geglu_grad": geglu_grad,
    "npu_swiglu": swiglu,
    "npu_swiglu_backward": swiglu_backward,
    "npu_rotary_mul": rotary_mul,
    "npu_rotary_mul_backward": rotary_mul_backward,
    "npu_cross_entropy_loss": cross_entropy_loss,
    "npu_cross_entropy_loss_backward": cross_entropy_loss_backward,
    "npu_gather_backward": gather_backward,
    "npu_format_cast": format_cast,
    "_npu_format_cast": format_cast,
    "_npu_dtype_cast": dtype_cast,
    "_npu_dtype_cast_backward": dtype_cast_backward,
    "repeat_interleave_backward_int": repeat_interleave_backward_int,
}
"""Operators by their name in the `npu` namespace."""

ATEN = {"matmul_backward": matmul_backward}
"""Operators of PyTorch's own that only device plug-ins implement."""
