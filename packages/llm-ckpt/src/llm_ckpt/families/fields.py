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


REQUIRED = Required()
Default = Json | Required | Callable[[Mapping[str, Json]], Json]


@dataclass(frozen=True, slots=True)
class Field:
    """A key whose value is one or several facts, renamed by `choices` when given.

    `default` is what transformers assumes for an absent key, `null` for a null one (when it is
    another value).
    """

    key: str
    facts: tuple[str, ...]
    default: Default = REQUIRED
    null: Default = None
    choices: Mapping[str, str] | None = None
    kind: Callable[[Json], Json] = field(default=lambda value: value)

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """The value, or the default, under every fact."""
        value = config.get(self.key)
        if value is None:
            is_null = self.key in config and self.null is not None
            default = self.null if is_null else self.default
            value = _default(self.key, default, config, where=where)
        elif self.choices is not None:
            if value not in self.choices:
                wanted = ", ".join(self.choices)
                raise ArchError(f"{where}: {self.key}={value!r} is not convertible, want {wanted}")
            value = self.choices[value]
        value = self.kind(value)
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
class Fixed:
    """A key that must be one of `values`: anything else says something arch.json would lose.

    The first value is the one written; `values` must hold what an absent key means.
    """

    key: str
    values: tuple[Json, ...]

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
        return {self.key: self.values[0]}


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

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """One run."""
        count = _default(self.key, REQUIRED, config, where=where)
        run = {"count": count, "mixer": "attention", "feed_forward": "dense"}
        return {"layers": [{**run, "window": None, "rope": True}]}

    def write(self, arch: Arch) -> dict[str, Json]:
        """The number of layers."""
        return {self.key: arch.num_layers}


@dataclass(frozen=True, slots=True)
class FullAttention:
    """Sliding-window keys of a family, accepted only when every layer attends to everything."""

    keys: tuple[str, ...] = (
        "use_sliding_window",
        "sliding_window",
        "max_window_layers",
        "layer_types",
    )

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """No facts; refuses a window in use."""
        if config.get("use_sliding_window"):
            raise ArchError(
                f"{where}: use_sliding_window=true cannot be converted by this family, want false"
            )
        types = cast("list[str]", config.get("layer_types") or [])
        if other := [(i, kind) for i, kind in enumerate(types) if kind != "full_attention"]:
            index, kind = other[0]
            raise ArchError(
                f"{where}: layer_types[{index}]={kind!r} cannot be converted, want 'full_attention'"
            )
        if types and len(types) != config.get("num_hidden_layers"):
            raise ArchError(
                f"{where}: layer_types has {len(types)} entries, "
                f"num_hidden_layers is {config.get('num_hidden_layers')}"
            )
        return {}

    def write(self, arch: Arch) -> dict[str, Json]:
        """No window anywhere."""
        return {
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": arch.num_layers,
            "layer_types": ["full_attention"] * arch.num_layers,
        }


# Parts of arch.json and the kinds of layers that have them.
_PARTS: Mapping[str, frozenset[str]] = {
    "attention": frozenset({"attention"}),
    "mla": frozenset({"mla"}),
    "gdn": frozenset({"gdn"}),
    "mamba2": frozenset({"mamba2"}),
    "mlp": frozenset({"dense", "dense_shortcut_moe"}),
    "moe": frozenset({"moe", "dense_shortcut_moe"}),
}


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
