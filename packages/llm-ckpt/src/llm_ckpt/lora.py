"""Low-rank adapters: what an adapter_config.json says, and the weight that an adapted one becomes.

LoRA (https://arxiv.org/abs/2106.09685): W + s·B·A with s = alpha / rank; rsLoRA
(https://arxiv.org/abs/2312.03732): s = alpha / √rank; DoRA (https://arxiv.org/abs/2402.09353): the
rows of that, of an embedding the columns, each scaled to a learned length. All in fp32, rounded
once to the weight's own dtype.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from torch import Tensor

from llm_ckpt.arch import Arch
from llm_ckpt.errors import FormatError
from llm_ckpt.layout import Shape
from llm_ckpt.rules import Rule

_T = TypeVar("_T")

# Values of fields that would change the weights in a way this module does not compute.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "lora_bias": (False, None),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "use_bdlora": (None, False),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "layer_replication": (None,),
    "exclude_modules": (None, [], ()),
}


class AdapterConfig(BaseModel):
    """The fields of PEFT's adapter_config.json that decide what is merged."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    r: PositiveInt
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    alpha_pattern: dict[str, float] = {}
    rank_pattern: dict[str, PositiveInt] = {}
    target_parameters: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None

    @property
    def default_scaling(self) -> float:
        """The factor of B·A where no pattern gives a module its own rank or alpha."""
        return self._scaling(self.lora_alpha, self.r)

    def is_saved(self, module: str) -> bool:
        """Whether PEFT trains a module whole, as it finds it."""
        return any(module.endswith(one) for one in self.modules_to_save or ())

    def is_parameter(self, name: str) -> bool:
        """Whether PEFT adapts a weight by its own name, not its module's."""
        return any(f".{name}".endswith(f".{one}") for one in self.target_parameters or ())

    def rank(self, module: str) -> int:
        """The rank of a module, as PEFT finds it."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scaling(self, module: str, rank: int) -> float:
        """The factor of B·A for a module, whose rank is that of its tensors."""
        return self._scaling(_by_pattern(self.alpha_pattern, module, self.lora_alpha), rank)

    def _scaling(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _by_pattern(patterns: Mapping[str, _T], module: str, default: _T) -> _T:
    """The value of the first pattern that is, or ends, a module's name."""
    found = (v for one, v in patterns.items() if re.fullmatch(rf"(.*\.)?({one})", module))
    return next(found, default)


def parse_adapter_config(document: Mapping[str, Any], *, where: str) -> AdapterConfig:
    """Check an adapter_config.json; what would be lost in a merge is an error."""
    for key, values in _NEUTRAL.items():
        if key in document and document[key] not in values:
            wanted = " or ".join(map(repr, values))
            raise FormatError(f"{where}: {key}={document[key]!r} cannot be merged, want {wanted}")
    try:
        return AdapterConfig.model_validate(document)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
        raise FormatError(f"{where}: " + "; ".join(problems)) from None


def adapted(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    scaling: float,
    magnitude: Tensor | None = None,
    is_transposed: bool = False,
    is_embedding: bool = False,
) -> Tensor:
    """The adapted weight, in the dtype of `weight`.

    weight [out, in] ([in, out] when transposed), a [rank, in], b [out, rank], magnitude [out]. Of
    an embedding [vocabulary, hidden] DoRA's lengths are those of its columns: magnitude [hidden].
    """
    delta = (b.float() @ a.float()).mul_(scaling)
    plain = weight.float()
    merged: Tensor = (plain.t() if is_transposed else plain) + delta
    if magnitude is not None:
        lengths = merged.square().sum(0 if is_embedding else 1).sqrt()
        scale = magnitude.float() / lengths
        merged = merged * (scale if is_embedding else scale[:, None])
    return (merged.t() if is_transposed else merged).to(weight.dtype)


@dataclass(frozen=True, slots=True)
class PartFactors:
    """The factors of one Hugging Face tensor and the factor of their product."""

    a: Tensor
    b: Tensor
    scaling: float


def merged_factors(
    rule: Rule, parts: Sequence[PartFactors | None], shapes: Sequence[Shape], arch: Arch
) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] of a parameter, B·A the merged scaled products of its parts.

    Parts that share one A keep their rank; otherwise their A are stacked and each B has its own
    columns. None is a part without adapter.
    """
    given = [part for part in parts if part is not None]
    shares = all(torch.equal(part.a, given[0].a) for part in given)
    a = given[0].a if shares else torch.cat([part.a for part in given])
    columns: list[Tensor] = []
    offset = 0
    for part, shape in zip(parts, shapes, strict=True):
        wide = a.new_zeros(shape[0], a.shape[0])
        if part is not None:
            rank = part.a.shape[0]
            wide[:, offset : offset + rank] = part.b * part.scaling
            offset += 0 if shares else rank
        columns.append(wide)
    return a, rule.merge(columns, arch)


def of_rank(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same product with zero rows and columns up to `rank`."""
    missing = rank - a.shape[0]
    more_a, more_b = a.new_zeros(missing, a.shape[1]), b.new_zeros(b.shape[0], missing)
    return torch.cat([a, more_a]), torch.cat([b, more_b], dim=1)
