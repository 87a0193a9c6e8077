"""geglu by `torch_npu.npu_geglu`."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from llm_kernels_npu.signatures import GeluFormula

_FORMULA: Mapping[GeluFormula, int] = MappingProxyType({"none": 0, "tanh": 1})


def geglu(x: Tensor, *, approximate: GeluFormula = "none") -> Tensor:
    """See `reference.geglu`."""
    fused = torch.ops.npu.npu_geglu.default
    # Unless told otherwise the fused operator takes the second half for the gate.
    return fused(x, -1, _FORMULA[approximate], activate_left=True)[0]
