"""Parameters that torch_dist stores under several keys, one for each kind of row.

Megatron-core takes these apart before it saves (`_split_tensor_factory` in megatron/core/ssm), so
that any tensor-parallel size divides each kind by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llm_ckpt.blocks import Param
from llm_ckpt.layout import section_ranges

# End of a parameter's name → the labels that follow it in keys, in the order of its rows.
LABELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        ".self_attention.in_proj.weight": ("query", "key", "value", "z", "beta", "alpha"),
        ".self_attention.conv1d.weight": ("query", "key", "value"),
        ".mixer.in_proj.weight": ("z", "x", "B", "C", "dt"),
        ".mixer.conv1d.weight": ("x", "B", "C"),
        ".mixer.conv1d.bias": ("x", "B", "C"),
    }
)


@dataclass(frozen=True, slots=True)
class Section:
    """Rows `start..stop` of a parameter and what its key has after the parameter's ("" or .z)."""

    suffix: str
    start: int
    stop: int


def sections_of(param: Param) -> tuple[Section, ...]:
    """The sections that are stored apart; one, of all rows, for most parameters."""
    labels = _labels(param.name)
    if not labels:
        return (Section("", 0, param.shape[0]),)
    ranges = section_ranges(param.shape[0], param.cut.sections, where=param.name)
    pairs = zip(labels, ranges, strict=True)
    return tuple(Section(f".{label}", start, stop) for label, (start, stop) in pairs)


def split_suffix(key: str) -> tuple[str, str]:
    """A key → the parameter's and the section's suffix, "" when it is no section's."""
    whole, _, label = key.rpartition(".")
    return (whole, f".{label}") if label in _labels(whole) else (key, "")


def section_named(param: Param, suffix: str) -> Section:
    """The section of `param` that `split_suffix` found; "" is all of it under one key."""
    whole = Section("", 0, param.shape[0])
    return next((s for s in sections_of(param) if s.suffix == suffix), whole)


def _labels(name: str) -> tuple[str, ...]:
    return next((labels for end, labels in LABELS.items() if name.endswith(end)), ())
