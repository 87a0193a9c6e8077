"""Rotary position keys of config.json: transformers 5's `rope_parameters` and the older pair."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from llm_ckpt.arch import Arch, Rope
from llm_ckpt.errors import ArchError, suggest
from llm_ckpt.families.fields import Facts, Json

# rope_type → (keys it must have, keys it may have with transformers' defaults).
_KINDS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Json]]] = {
    "linear": (("factor",), {}),
    "dynamic": (("factor",), {}),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor"),
        {"original_max_position_embeddings": None},
    ),
    "yarn": (
        ("factor",),
        {
            "original_max_position_embeddings": None,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": None,
            "mscale_all_dim": None,
            "truncate": True,
        },
    ),
    "longrope": (
        ("short_factor", "long_factor"),
        {"original_max_position_embeddings": None, "attention_factor": None},
    ),
}
_FLOATS = frozenset(
    {"factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"}
    | {"mscale", "mscale_all_dim", "attention_factor"}
)
_ORIGINAL = "original_max_position_embeddings"
_SHARED = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# Keys that say the same in another way: read, checked or folded in, never written.
_FOLDED: Mapping[str, tuple[str, ...]] = {"yarn": ("attention_factor",), "longrope": ("factor",)}
# Tencent's fixed NTK stretch travels with keys that do nothing.
_ALPHA_KEYS = frozenset({"alpha", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"})


@dataclass(frozen=True, slots=True)
class RopeFields:
    """`rope_parameters`, or `rope_theta` + `rope_scaling`; written as transformers 5 writes it.

    `fraction` is what an absent `partial_rotary_factor` means; None for a family that has no such
    key. `kinds` maps rope types of the family's own to those of transformers. With
    `default_original` the trained length is a key beside max_position_embeddings (Phi-3).
    """

    default_base: float = 10000.0
    fraction: float | None = None
    interleaved: bool = False
    kinds: Mapping[str, str] = field(default_factory=dict[str, str])
    default_original: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that says something of positions."""
        partial = () if self.fraction is None else ("partial_rotary_factor",)
        original = () if self.default_original is None else (_ORIGINAL,)
        return ("rope_parameters", "rope_theta", "rope_scaling", *partial, *original)

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """`position` facts."""
        given = _given(config, where=where)
        kind = given.get("rope_type") or given.get("type") or "default"
        kind = self.kinds.get(kind, kind)
        base = given.get("rope_theta")
        if base is None:
            base = config.get("rope_theta")
        base = float(self.default_base if base is None else base)
        if kind == "dynamic" and given.get("alpha") is not None:
            base, kind, given = _stretched(base, given, config, where=where), "default", {}
        if self.default_original is not None and kind != "default":
            given = {**given, _ORIGINAL: config.get(_ORIGINAL) or self.default_original}
        return {
            "position.kind": "rope",
            "position.base": base,
            "position.fraction": self._fraction(given, config, where=where),
            "position.interleaved": self.interleaved,
            "position.scaling": _scaling(kind, given, config, where=where),
        }

    def write(self, arch: Arch) -> dict[str, Json]:
        """One `rope_parameters` object."""
        if not isinstance(arch.position, Rope):
            raise ArchError(f"position.kind {arch.position.kind!r} has no rope_parameters")
        parameters: dict[str, Json] = {"rope_type": "default", "rope_theta": arch.position.base}
        original = arch.max_position_embeddings
        if arch.position.scaling is not None:
            scaling = arch.position.scaling.model_dump(mode="json", exclude_none=True)
            parameters["rope_type"] = scaling.pop("kind")
            original = scaling.get(_ORIGINAL, original)
            parameters.update(scaling)
        if self.fraction is not None:
            parameters["partial_rotary_factor"] = arch.position.fraction
        keys: dict[str, Json] = {"rope_parameters": dict(sorted(parameters.items()))}
        return keys if self.default_original is None else {**keys, _ORIGINAL: original}

    def _fraction(
        self, given: Mapping[str, Json], config: Mapping[str, Json], *, where: str
    ) -> float:
        found = given.get("partial_rotary_factor")
        if self.fraction is not None:
            found = config.get("partial_rotary_factor") if found is None else found
            return float(self.fraction if found is None else found)
        if found not in (None, 1.0):
            raise ArchError(
                f"{where}: partial_rotary_factor={found!r} that cannot be converted, want 1.0 or "
                "no such key in this family"
            )
        return 1.0


def _given(config: Mapping[str, Json], *, where: str) -> dict[str, Json]:
    """The one object that says the scaling; the same for every type of layer."""
    found = [key for key in ("rope_parameters", "rope_scaling") if config.get(key)]
    if len(found) == 2 and config["rope_parameters"] != config["rope_scaling"]:
        raise ArchError(f"{where}: rope_parameters and rope_scaling disagree, want one of them")
    value: Json = config[found[0]] if found else {}
    if not isinstance(value, dict):
        raise ArchError(f"{where}: {found[0]} is {type(value).__name__}, want an object")
    given = cast("dict[str, Json]", value)
    nested = {key: inner for key, inner in given.items() if key.endswith("_attention")}
    if not nested:
        return given
    (first, same), *rest = nested.items()
    for key, other in rest:
        if other != same:
            raise ArchError(
                f"{where}: {found[0]}.{first}={same} and {found[0]}.{key}={other} cannot be "
                "converted, want the same positions in every layer"
            )
    return same


def _stretched(
    base: float, given: Mapping[str, Json], config: Mapping[str, Json], *, where: str
) -> float:
    """Tencent's `alpha`: base · alpha^(d / (d - 2)), whatever the sequence length."""
    known = {*_SHARED, *_ALPHA_KEYS}
    if unknown := sorted(key for key in given if key not in known):
        raise ArchError(
            f"{where}: rope with alpha has key {unknown[0]}={given[unknown[0]]!r} that cannot be "
            f"converted{suggest(unknown[0], known)}"
        )
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return base * float(given["alpha"]) ** (dim / (dim - 2))


def _scaling(
    kind: str, given: Mapping[str, Json], config: Mapping[str, Json], *, where: str
) -> dict[str, Json] | None:
    if kind == "default":
        required, optional = (), dict[str, Json]()
    elif kind in _KINDS:
        required, optional = _KINDS[kind]
    else:
        choices = ", ".join(("default", *_KINDS))
        raise ArchError(f"{where}: rope_type {kind!r} cannot be converted, want one of {choices}")
    known = {*_SHARED, *required, *optional, *_FOLDED.get(kind, ())}
    unknown = sorted(k for k, v in given.items() if k not in known and v is not None)
    if unknown:
        raise ArchError(
            f"{where}: rope_type {kind!r} has key {unknown[0]}={given[unknown[0]]!r} that cannot "
            f"be converted{suggest(unknown[0], known)}"
        )
    if missing := [key for key in required if given.get(key) is None]:
        raise ArchError(f"{where}: rope_type {kind!r} needs {', '.join(missing)}")
    if kind == "default":
        return None
    values = {key: given.get(key) for key in (*required, *optional)}
    for key, default in optional.items():
        if values[key] is None:
            values[key] = default
    if _ORIGINAL in values and values[_ORIGINAL] is None:
        values[_ORIGINAL] = config.get("max_position_embeddings")
    _fold(kind, given, values, config, where=where)
    as_float = {k: float(v) if k in _FLOATS and v is not None else v for k, v in values.items()}
    return {"kind": kind, **as_float}


def _fold(
    kind: str,
    given: Mapping[str, Json],
    values: dict[str, Json],
    config: Mapping[str, Json],
    *,
    where: str,
) -> None:
    """Keys whose meaning arch.json has elsewhere (transformers' modeling_rope_utils.py)."""
    if kind == "yarn" and (found := given.get("attention_factor")) is not None:
        wanted = _yarn_attention_factor(values)
        if not math.isclose(found, wanted, rel_tol=1e-6):
            raise ArchError(
                f"{where}: attention_factor={found!r} cannot be converted, want {wanted:.6g}, as "
                "factor, mscale and mscale_all_dim give it"
            )
    if kind == "longrope" and values["attention_factor"] is None and given.get("factor"):
        factor, original = float(given["factor"]), values[_ORIGINAL]
        if factor != config["max_position_embeddings"] / original:
            growth = math.log(factor) / math.log(original)
            values["attention_factor"] = math.sqrt(1 + growth) if factor > 1 else 1.0


def _yarn_attention_factor(values: Mapping[str, Json]) -> float:
    def mscale(times: float) -> float:
        return 0.1 * times * math.log(values["factor"]) + 1.0 if values["factor"] > 1 else 1.0

    if values["mscale"] and values["mscale_all_dim"]:
        return mscale(values["mscale"]) / mscale(values["mscale_all_dim"])
    return mscale(1.0)
