"""A family's rules compiled against one architecture: an immutable table of concrete names."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from llm_ckpt.arch import Arch
from llm_ckpt.errors import CheckpointError, first_few, suggest
from llm_ckpt.layout import Cut, Shape
from llm_ckpt.params import LAYER, Param, expected_params
from llm_ckpt.rules import Rule


@dataclass(frozen=True, slots=True)
class Part:
    """One Hugging Face tensor: its name, full shape and cut."""

    name: str
    shape: Shape
    cut: Cut


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter, the rule that makes it and the Hugging Face tensors it is made of."""

    param: Param
    rule: Rule
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """All entries of a model, by canonical name, in model order.

    `copies` maps a Hugging Face name that may be stored twice to the one it must equal.
    """

    arch: Arch
    entries: Mapping[str, Entry]
    copies: Mapping[str, str]
    buffers: tuple[str, ...]

    def hf_parts(self) -> Iterable[Part]:
        """Every Hugging Face tensor, in model order."""
        return (part for entry in self.entries.values() for part in entry.parts)

    def check_hf_names(self, names: Iterable[str], *, where: str) -> None:
        """Every stored name is consumed once, every wanted name is stored."""
        found, wanted = set(names), {part.name for part in self.hf_parts()}
        extra = sorted(n for n in found - wanted - self.copies.keys() if not self._is_buffer(n))
        missing = sorted(wanted - found)
        check_names(missing, extra, known=wanted, where=where)

    def _is_buffer(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.buffers)


def compile_table(
    rules: Sequence[Rule],
    arch: Arch,
    *,
    copies: Mapping[str, str] | None = None,
    buffers: tuple[str, ...] = (),
) -> Table:
    """Bind each parameter of `arch` to the one rule that makes it.

    A rule whose parameter the architecture lacks (a bias that is off) stays unused. No rule or two
    rules for one parameter, or one Hugging Face name used twice, is an error.
    """
    by_name = _expand(rules, arch)
    params = expected_params(arch)
    where = f"family {arch.family}"
    unmade = [p.name for p in params if not by_name.get(p.name)]
    if unmade:
        found = f"{len(unmade)} parameters have no rule: {first_few(unmade)}"
        raise CheckpointError(f"{where}: {found}")
    twice = [p.name for p in params if len(by_name[p.name]) > 1]
    if twice:
        found = f"{len(twice)} parameters have more than one rule: {first_few(twice)}"
        raise CheckpointError(f"{where}: {found}")
    entries = {p.name: _bind(p, *by_name[p.name][0], arch) for p in params}
    used = Counter(part.name for entry in entries.values() for part in entry.parts)
    shared = [name for name, count in used.items() if count > 1]
    if shared:
        raise CheckpointError(
            f"{where}: {len(shared)} Hugging Face names are used twice: {first_few(shared)}"
        )
    kept = {a: b for a, b in (copies or {}).items() if a not in used and b in used}
    return Table(arch, MappingProxyType(entries), MappingProxyType(kept), buffers)


def check_names(
    missing: Sequence[str], extra: Sequence[str], *, known: Iterable[str], where: str
) -> None:
    """Raise one error that lists both kinds of leftovers, five of each and a count."""
    problems: list[str] = []
    if extra:
        hint = suggest(extra[0], known)
        problems.append(f"{len(extra)} unknown tensors: {first_few(extra)}{hint}")
    if missing:
        problems.append(f"{len(missing)} tensors are missing: {first_few(missing)}")
    if problems:
        raise CheckpointError(f"{where}: " + "; ".join(problems))


def _expand(rules: Sequence[Rule], arch: Arch) -> dict[str, list[tuple[Rule, int]]]:
    by_name: dict[str, list[tuple[Rule, int]]] = {}
    for rule in rules:
        for layer in range(arch.num_layers) if LAYER in rule.mcore else (0,):
            by_name.setdefault(rule.mcore.format(i=layer), []).append((rule, layer))
    return by_name


def _bind(param: Param, rule: Rule, layer: int, arch: Arch) -> Entry:
    names = [pattern.format(i=layer) for pattern in rule.parts]
    shapes, cuts = rule.part_shapes(param.shape, arch), rule.part_cuts(param.cut)
    return Entry(param, rule, tuple(map(Part, names, shapes, cuts)))
