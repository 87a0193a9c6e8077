"""Linears that add their weights' gradients to the gradient buffers as part of the product.

megatron-core can, with a CUDA extension: without it each gradient is made in memory of its own and
added in a second pass, which at small batches is a twentieth of a step. Where weights and buffers
are both fp32 torch's own product with an addend is all that is needed.
"""

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from llm_train.arch import Arch
from llm_train.model.build import Model


def add_in_products(chunk: Model, arch: Arch) -> None:
    """Switch it on for the linears of a chunk, in its buffers already, that can do so."""
    for module in chunk.modules():
        if isinstance(module, ColumnParallelLinear | RowParallelLinear):
            module.gradient_accumulation_fusion = _can_add(module.weight)
    if chunk.post_process and (arch.output_normalized or chunk.loss_chunk is not None):
        # It multiplies by what is made of its weight; or its gradients are summed over parts.
        chunk.output_layer.gradient_accumulation_fusion = False


def _can_add(weight: torch.Tensor | None) -> bool:
    buffer = getattr(weight, "main_grad", None)
    if weight is None or buffer is None or not weight.requires_grad:
        return False
    return weight.device.type == "cpu" and weight.dtype is buffer.dtype is torch.float32


class Products:
    """Stands for the CUDA extension, by the name and the calls that megatron-core uses."""

    @staticmethod
    def wgrad_gemm_accum_fp32(
        x: torch.Tensor, grad_output: torch.Tensor, main_grad: torch.Tensor
    ) -> None:
        """main_grad [out, in] += grad_output [T · B, out]ᵀ @ x [T · B, in]."""
        main_grad.addmm_(grad_output.t(), x)
