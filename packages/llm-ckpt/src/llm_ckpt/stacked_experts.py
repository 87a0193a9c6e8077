"""Experts that transformers holds as one parameter, and which of it a stored tensor is.

transformers 5 has the experts of a layer in `….experts.gate_up_proj` [E, …] and
`….experts.down_proj`, whatever its files have. PEFT's `target_parameters` adapts such a parameter
by A [E · rank, in], expert after expert, and B [out, rank · E], in which the expert goes fastest
(peft.tuners.lora.layer.ParamWrapper.get_delta_weight).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_ckpt.table import Part

MATRICES = ("gate_up_proj", "down_proj")
"""The parameters of a module of experts, as transformers has them in order."""

FAMILIES = frozenset(
    {
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "dots1",
        "ernie4_5_moe",
        "exaone_moe",
        "flex_olmo",
        "glm4_moe",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "hunyuan_v1_moe",
        "longcat_flash",
        "minimax_m2",
        "mixtral",
        "olmoe",
        "qwen2_moe",
        "qwen3_moe",
        "qwen3_next",
        "solar_open",
    }
)
"""Those of transformers whose files hold experts apart, and whose target modules PEFT converts.

In them PEFT 0.21 takes every target named like a matrix of an expert for that of experts alone
(peft.utils.transformers_weight_conversion): adapters of dense and shared feed-forwards are lost,
unless they too are named as parameters.
"""

# Files that hold every expert apart, and what of the parameter a tensor is: all, or a half.
_APART = re.compile(r"(?P<block>.+\.mlp)\.experts\.(?P<expert>\d+)\.(?P<matrix>\w+)\.weight")
_MIXTRAL = re.compile(
    r"(?P<layer>.+)\.block_sparse_moe\.experts\.(?P<expert>\d+)\.(?P<matrix>w[123])\.weight"
)
_HALVES = {
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
    "down_proj": ("down_proj", None),
    "w1": ("gate_up_proj", 0),
    "w3": ("gate_up_proj", 1),
    "w2": ("down_proj", None),
}
# Files that hold them as one tensor.
_TOGETHER = re.compile(r"(?P<block>.+)\.experts\.(?P<matrix>gate_up_proj|down_proj)")
_GRANITE = re.compile(r"(?P<block>.+)\.(?P<matrix>input_linear|output_linear)\.weight")
_GRANITES = {"input_linear": "gate_up_proj", "output_linear": "down_proj"}


@dataclass(frozen=True, slots=True)
class Stacked:
    """Expert `expert` of a transformers parameter; `half` 0 or 1 of its outputs, None for all."""

    parameter: str
    expert: int
    half: int | None


def stacked(part: Part) -> Stacked | None:
    """Which expert of which parameter a stored tensor is; None when it is of no stack."""
    if part.index is not None:
        if match := _TOGETHER.fullmatch(part.name):
            return Stacked(part.name, part.index, None)
        if match := _GRANITE.fullmatch(part.name):
            matrix = _GRANITES[match["matrix"]]
            return Stacked(f"{match['block']}.experts.{matrix}", part.index, None)
        return None
    if match := _APART.fullmatch(part.name):
        block = match["block"]
    elif match := _MIXTRAL.fullmatch(part.name):
        block = f"{match['layer']}.mlp"
    else:
        return None
    if match["matrix"] not in _HALVES:
        return None
    matrix, half = _HALVES[match["matrix"]]
    return Stacked(f"{block}.experts.{matrix}", int(match["expert"]), half)


def is_taken_for_experts(module: str) -> bool:
    """Whether PEFT takes a target module for one of experts in one of `FAMILIES`."""
    return module.rpartition(".")[2] in _HALVES


def join(experts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] of every expert → PEFT's of their parameter."""
    a = torch.cat([one[0] for one in experts])
    return a, torch.stack([one[1] for one in experts], dim=-1).flatten(1)


def cut(a: Tensor, b: Tensor, which: Stacked, *, experts: int) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] of one expert, or a half of it, out of PEFT's."""
    own_a = a.view(experts, -1, a.shape[1])[which.expert]
    own_b = b[:, which.expert :: experts]
    return own_a, own_b if which.half is None else own_b.chunk(2)[which.half]
