"""Calls of the recurrences with decays of which hardly anything is left."""

import dataclasses

import torch
from torch import Tensor

from llm_kernels_npu.case import Case
from llm_kernels_npu.ops.gated_delta_rule.cases import case as delta_rule
from llm_kernels_npu.ops.mamba2_scan.cases import case as scan

STEEP = (-50.0, -1e4, -1e30, float("-inf"))


def steep(name: str, value: float) -> Case:
    """Every third token's log decay is `value`, in mamba2_scan the first head's rate is.

    A rate of -inf has no gradient of dt, so -1e38 stands for it.
    """
    if name == "gated_delta_rule":
        plain, place = delta_rule(1, 20, 1, 2, 4, 3, has_state=True), 3
    else:
        plain, place = scan(1, 20, 2, 3, 1, 4, extra=("initial_state",)), 2

    def build(seed: torch.Generator) -> tuple[Tensor, ...]:
        tensors = plain.build(seed)
        if name == "gated_delta_rule":
            tensors[place][:, ::3] = value
        else:
            tensors[place][0] = max(value, -1e38)
        return tensors

    return dataclasses.replace(plain, name=f"{plain.name} {value:g}", build=build)
