"""The operators as the native engine asks for them."""

import torch
from torch import Tensor

from llm_infer.compiled.library import WEIGHTS, Library
from llm_infer.kernels import TorchKernels
from llm_infer.model.int8 import quantized


class CompiledKernels(TorchKernels):
    """Operators in C for float32 on this CPU, and torch's for what they do not take.

    Weights of linear layers may be kept in fewer bytes; each is made float32 when it is multiplied.

    They compute a row in one order whatever else is computed, so results do not depend on the step.
    """

    def __init__(self, functions: Library) -> None:
        super().__init__()
        self.functions = functions

    def __str__(self) -> str:
        return f"compiled for this CPU ({32 * self.functions.lanes} bit)"

    def rms_norm(self, x: Tensor, weight: Tensor, *, eps: float, offset: float = 0.0) -> Tensor:
        """See `Kernels`."""
        if x.dtype != torch.float32:
            return super().rms_norm(x, weight, eps=eps, offset=offset)
        gain = weight.float() + offset if offset else weight.float()
        return self.functions.rms_norm(x, gain, eps=eps)

    def linear(self, weight: Tensor, bias: Tensor | None) -> "CompiledLinear":
        """A linear layer; `weight` [N, K] may be freed afterwards."""
        return CompiledLinear(self.functions, weight, None, bias, is_gated=False)

    def swiglu_linear(self, weight: Tensor, bias: Tensor | None) -> "CompiledLinear":
        """`silu(gate) * up` of a layer whose outputs [2N] are gates, then ups."""
        return CompiledLinear(self.functions, weight, None, bias, is_gated=True)

    def int8_linear(self, weight: Tensor, bias: Tensor | None) -> "CompiledLinear":
        """A linear layer of weights as 8-bit numbers, see `int8.quantized`."""
        return CompiledLinear(self.functions, *quantized(weight), bias, is_gated=False)

    def int8_swiglu_linear(self, weight: Tensor, bias: Tensor | None) -> "CompiledLinear":
        """The same with gates, then ups, as outputs."""
        return CompiledLinear(self.functions, *quantized(weight), bias, is_gated=True)


class CompiledLinear:
    """See `CompiledKernels`."""

    def __init__(
        self,
        functions: Library,
        weight: Tensor,
        scales: Tensor | None,
        bias: Tensor | None,
        *,
        is_gated: bool,
    ) -> None:
        """`weight` keeps its number type where it can; outputs are multiplied by `scales`."""
        if weight.dtype not in WEIGHTS:
            weight = weight.float()
        self._functions, self._is_gated = functions, is_gated
        self._outputs = len(weight) // 2 if is_gated else len(weight)
        self._panels = functions.packed(weight, is_gated=is_gated)
        self._scales, self._bias = (
            None if one is None else functions.packed(one.float()[:, None], is_gated=is_gated)
            for one in (scales, bias)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[T, N] of x [T, K]."""
        return self._functions.linear(
            x,
            self._panels,
            self._scales,
            self._bias,
            outputs=self._outputs,
            is_gated=self._is_gated,
        )
