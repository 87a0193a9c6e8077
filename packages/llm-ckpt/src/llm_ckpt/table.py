"""A family's rules compiled against one architecture: an immutable table of concrete names."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from llm_ckpt.arch import Arch
from llm_ckpt.blocks import Param
from llm_ckpt.errors import CheckpointError, first_few, suggest
from llm_ckpt.layout import Cut, Shape
from llm_ckpt.params import expected_params
from llm_ckpt.rules import Rule


@dataclass(frozen=True, slots=True)
class Part:
    """One Hugging Face tensor, or entry `index` of its axis 0: name, full shape and cut.

    `count` is the extent of that axis; shape and cut are those of the entry.
    """

    name: str
    shape: Shape
    cut: Cut
    index: int | None = None
    count: int | None = None

    @property
    def key(self) -> str:
        """The name, of an entry with its number: no two parts share one."""
        return self.name if self.index is None else f"{self.name}[{self.index}]"

    @property
    def stored_shape(self) -> Shape:
        """Shape of the tensor under this name."""
        return self.shape if self.count is None else (self.count, *self.shape)


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter, the rule that makes it and the Hugging Face tensors it is made of."""

    param: Param
    rule: Rule
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """All entries of a model, by canonical name, in model order.

    `copies` maps a Hugging Face name that may be stored twice to the one it must equal;
    `duplicates` are those of them that are also written.
    """

    arch: Arch
    entries: Mapping[str, Entry]
    copies: Mapping[str, str]
    buffers: tuple[str, ...]
    duplicates: Mapping[str, str] = field(default_factory=dict[str, str])

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
    duplicates: Mapping[str, str] | None = None,
    buffers: tuple[str, ...] = (),
) -> Table:
    """Bind each parameter of `arch` to the one rule that makes it.

    A rule whose parameter the architecture lacks (a bias that is off) stays unused. No rule or two
    rules for one parameter, or one Hugging Face name used twice, is an error.
    """
    by_pattern: dict[str, list[Rule]] = {}
    for rule in rules:
        by_pattern.setdefault(rule.mcore, []).append(rule)
    params = expected_params(arch)
    patterns = {param.name: _pattern(param.name) for param in params}
    found = {name: by_pattern.get(pattern.text, []) for name, pattern in patterns.items()}
    where = f"family {arch.family}"
    if unmade := [name for name, made_by in found.items() if not made_by]:
        raise CheckpointError(
            f"{where}: {len(unmade)} parameters have no rule: {first_few(unmade)}"
        )
    if twice := [name for name, made_by in found.items() if len(made_by) > 1]:
        raise CheckpointError(
            f"{where}: {len(twice)} parameters have more than one rule: {first_few(twice)}"
        )
    pieces = _Pieces(arch)
    entries = {p.name: _bind(p, found[p.name][0], patterns[p.name], pieces) for p in params}
    used = Counter((part.name, part.index) for e in entries.values() for part in e.parts)
    shared = [name for (name, _), count in used.items() if count > 1]
    if shared:
        raise CheckpointError(
            f"{where}: {len(shared)} Hugging Face names are used twice: {first_few(shared)}"
        )
    names = {name for name, _ in used}
    written = _of_prediction_layers(duplicates or {}, arch)
    kept, written = (
        MappingProxyType({a: b for a, b in pairs.items() if a not in names and b in names})
        for pairs in ({**(copies or {}), **written}, written)
    )
    return Table(arch, MappingProxyType(entries), kept, buffers, written)


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


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A parameter's name as rules write it, and the numbers taken out of it."""

    text: str
    numbers: Mapping[str, int]


_NUMBERED = re.compile(
    r"(?<=decoder\.layers\.)(?P<i>\d+)|(?<=mtp\.layers\.)(?P<m>\d+)|(?<=local_experts\.)(?P<e>\d+)"
)
_INDEXED = re.compile(r"(.+)\[(\d+)\]")


def _pattern(name: str) -> _Pattern:
    numbers: dict[str, int] = {}

    def take(match: re.Match[str]) -> str:
        key = str(match.lastgroup)
        numbers[key] = int(match[0])
        return f"{{{key}}}"

    return _Pattern(_NUMBERED.sub(take, name), numbers)


class _Pieces:
    """Shapes and cuts of a rule's parts; experts and layers by the thousand have the same."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self._known: dict[tuple[int, Shape, Cut], tuple[tuple[Shape, Cut], ...]] = {}

    def of(self, rule: Rule, param: Param) -> tuple[tuple[Shape, Cut], ...]:
        """One pair a part."""
        key = (id(rule), param.shape, param.cut)
        if key not in self._known:
            shapes = rule.part_shapes(param.shape, self.arch)
            cuts = rule.part_cuts(param.cut, self.arch)
            self._known[key] = tuple(zip(shapes, cuts, strict=True))
        return self._known[key]


def _bind(param: Param, rule: Rule, pattern: _Pattern, pieces: _Pieces) -> Entry:
    numbers, arch = dict(pattern.numbers), pieces.arch
    if "m" in numbers:
        numbers["n"] = arch.num_layers + numbers["m"]
    if "i" in numbers:
        numbers["h"], numbers["s"] = divmod(numbers["i"], 2)
    parts = (
        _part(name.format(**numbers), shape, cut, arch)
        for name, (shape, cut) in zip(rule.parts, pieces.of(rule, param), strict=True)
    )
    return Entry(param, rule, tuple(parts))


def _of_prediction_layers(names: Mapping[str, str], arch: Arch) -> dict[str, str]:
    count = arch.mtp.layers if arch.mtp else 0
    numbers = [{"m": m, "n": arch.num_layers + m} for m in range(count)]
    return {copy.format(**m): of.format(**m) for copy, of in names.items() for m in numbers}


def _part(name: str, shape: Shape, cut: Cut, arch: Arch) -> Part:
    match = _INDEXED.fullmatch(name) if name.endswith("]") else None
    if match is None:
        return Part(name, shape, cut)
    if arch.moe is None:
        raise CheckpointError(f"family {arch.family}: {name} is an expert, but arch has no moe")
    return Part(match[1], shape, cut, int(match[2]), arch.moe.experts)
