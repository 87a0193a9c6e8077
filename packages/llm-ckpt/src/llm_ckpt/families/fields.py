"""Codecs between keys of config.json and facts of arch.json, each usable in both directions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from llm_ckpt.arch import Arch
from llm_ckpt.errors import ArchError

Json = Any  # a decoded JSON value
Facts = dict[str, Json]  # dotted arch.json keys → values


class Codec(Protocol):
    """One or more keys of config.json."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys it consumes."""
        ...

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """Facts from config.json."""
        ...

    def write(self, arch: Arch) -> dict[str, Json]:
        """Keys of config.json from the architecture."""
        ...


class Required:
    """The default of a key that has none."""


class AsAbsent:
    """What a null means where it means the same as no key."""


REQUIRED = Required()
AS_ABSENT = AsAbsent()
Default = Json | Required | Callable[[Mapping[str, Json]], Json]


@dataclass(frozen=True, slots=True)
class Field:
    """A key whose value is one or several facts, renamed by `choices` when given.

    `default` is what transformers assumes for an absent key, `null` for a null one, when that is
    another value. `aliases` are older names of the key, read and never written.
    """

    key: str
    facts: tuple[str, ...]
    default: Default = REQUIRED
    null: Default | AsAbsent = AS_ABSENT
    choices: Mapping[Json, str] | None = None
    kind: Callable[[Json], Json] = field(default=lambda value: value)
    aliases: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The key and its older names."""
        return (self.key, *self.aliases)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The value, or the default, under every fact."""
        key = one_of(self.keys, config, where=where)
        value = config.get(key)
        if value is None:
            is_null = key in config and not isinstance(self.null, AsAbsent)
            default = self.null if is_null else self.default
            value = _default(self.key, cast("Default", default), config, where=where)
        elif self.choices is not None:
            if value not in self.choices:
                wanted = ", ".join(map(str, self.choices))
                raise ArchError(f"{where}: {key}={value!r} is not convertible, want {wanted}")
            value = self.choices[value]
        value = None if value is None else self.kind(value)
        return dict.fromkeys(self.facts, value)

    def write(self, arch: Arch) -> dict[str, Json]:
        """The first fact's value in Hugging Face's spelling; none for parts a model lacks."""
        facts = [fact for fact in self.facts if _has_block(arch, fact)]
        if not facts:
            return {}
        value = look_up(arch, facts[0])
        if self.choices is not None:
            value = next((hf for hf, ours in self.choices.items() if ours == value), value)
        return {self.key: value}


@dataclass(frozen=True, slots=True)
class Power:
    """A key whose power is a fact: -0.5 of a dimension that scales scores, -1 of a divisor."""

    key: str
    fact: str
    exponent: float
    default: float

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The value to the power."""
        del where
        value = config.get(self.key)
        return {self.fact: float(self.default if value is None else value) ** self.exponent}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The root, tidied of rounding when the tidy number gives the same fact."""
        fact = look_up(arch, self.fact)
        if fact is None:
            return {}
        root = fact ** (1 / self.exponent)
        tidy = float(f"{root:.12g}")
        root = tidy if tidy**self.exponent == fact else root
        return {self.key: int(root) if root.is_integer() else root}


@dataclass(frozen=True, slots=True)
class Derived:
    """A fact that config.json says by other keys; writing is checked by reading back."""

    fact: str
    value: Callable[[Mapping[str, Json]], Json]
    keys: tuple[str, ...] = ()

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The value."""
        del where
        return {self.fact: self.value(config)}

    def write(self, arch: Arch) -> dict[str, Json]:
        """No keys."""
        del arch
        return {}


@dataclass(frozen=True, slots=True)
class Fixed:
    """A key that must be one of `values`: anything else says something arch.json would lose.

    The first value is the one written, if any is; `values` must hold what an absent key means.
    """

    key: str
    values: tuple[Json, ...]
    is_written: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """No facts; refuses other values."""
        if self.key in config and config[self.key] not in self.values:
            wanted = " or ".join(map(repr, self.values))
            raise ArchError(
                f"{where}: {self.key}={config[self.key]!r} cannot be converted, want {wanted}"
            )
        return {}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The neutral value."""
        del arch
        return {self.key: self.values[0]} if self.is_written else {}


@dataclass(frozen=True, slots=True)
class Ignored:
    """Keys that say nothing of the weights or of how a trained model computes; not written."""

    keys: tuple[str, ...]

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """No facts."""
        del config, where
        return {}

    def write(self, arch: Arch) -> dict[str, Json]:
        """No keys."""
        del arch
        return {}


@dataclass(frozen=True, slots=True)
class UniformLayers:
    """`num_hidden_layers` equal layers of attention and a dense feed-forward."""

    key: str = "num_hidden_layers"
    aliases: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The key and its older names."""
        return (self.key, *self.aliases)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """One run."""
        key = one_of(self.keys, config, where=where)
        count = _default(key, REQUIRED, config, where=where)
        run = {"count": count, "mixer": "attention", "feed_forward": "dense"}
        return {"layers": [{**run, "window": None, "rope": True}]}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The number of layers."""
        return {self.key: arch.num_layers}


# Parts of arch.json and the kinds of layers that have them.
_PARTS: Mapping[str, frozenset[str]] = {
    "attention": frozenset({"attention"}),
    "mla": frozenset({"mla"}),
    "gdn": frozenset({"gdn"}),
    "mamba2": frozenset({"mamba2"}),
    "mlp": frozenset({"dense", "dense_shortcut_moe"}),
    "moe": frozenset({"moe", "dense_shortcut_moe"}),
}


def one_of(keys: tuple[str, ...], config: Mapping[str, Json], *, where: str) -> str:
    """The name among `keys` that `config` uses, the first if none; refuses two that disagree."""
    used = [key for key in keys if config.get(key) is not None] or [k for k in keys if k in config]
    if differing := [key for key in used if config[key] != config[used[0]]]:
        first, other = used[0], differing[0]
        raise ArchError(
            f"{where}: {first}={config[first]!r} and {other}={config[other]!r} are two names of "
            "one thing, want one of them"
        )
    return used[0] if used else keys[0]


def look_up(arch: Arch, path: str) -> Json:
    """The value under a dotted key."""
    value: Json = arch.document()
    for key in path.split("."):
        value = None if value is None else value[key]
    return value


def _has_block(arch: Arch, path: str) -> bool:
    """Whether the object a dotted key lies in is not null."""
    parent = path.rpartition(".")[0]
    return not parent or look_up(arch, parent) is not None


def nest(facts: Facts) -> dict[str, Json]:
    """Dotted keys → nested objects; a part that no layer has is null whatever is said of it."""
    document: dict[str, Json] = {}
    for path, value in facts.items():
        *parents, last = path.split(".")
        target = document
        for key in parents:
            if target.get(key) is None:
                target[key] = {}
            target = target[key]
        target[last] = value
    runs = cast("list[dict[str, str]]", document["layers"])
    used = {kind for run in runs for kind in (run["mixer"], run["feed_forward"])}
    for part, kinds in _PARTS.items():
        if not used & kinds:
            document[part] = None
    return document


def _default(key: str, default: Default, config: Mapping[str, Json], *, where: str) -> Json:
    if key in config and config[key] is not None:
        return config[key]
    if isinstance(default, Required):
        raise ArchError(f"{where}: missing key {key}")
    return default(config) if callable(default) else default
