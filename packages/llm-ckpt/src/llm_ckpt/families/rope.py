"""Rotary position keys of config.json: transformers 5's `rope_parameters` and the older pair."""

from collections.abc import Mapping
from dataclasses import dataclass
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
_SHARED = ("rope_type", "type", "rope_theta")


@dataclass(frozen=True, slots=True)
class RopeFields:
    """`rope_parameters`, or `rope_theta` + `rope_scaling`; written as transformers 5 writes it."""

    default_base: float = 10000.0
    keys: tuple[str, ...] = ("rope_parameters", "rope_theta", "rope_scaling")

    def read(self, config: Mapping[str, Json], *, where: str) -> Facts:
        """`position` facts."""
        given = self._given(config, where=where)
        kind = given.get("rope_type") or given.get("type") or "default"
        base = given.get("rope_theta")
        if base is None:
            base = config.get("rope_theta")
        return {
            "position.kind": "rope",
            "position.base": float(self.default_base if base is None else base),
            "position.fraction": 1.0,
            "position.interleaved": False,
            "position.scaling": _scaling(kind, given, config, where=where),
        }

    def write(self, arch: Arch) -> dict[str, Json]:
        """One `rope_parameters` object."""
        if not isinstance(arch.position, Rope):
            raise ArchError(f"position.kind {arch.position.kind!r} has no rope_parameters")
        parameters: dict[str, Json] = {"rope_type": "default", "rope_theta": arch.position.base}
        if arch.position.scaling is not None:
            scaling = arch.position.scaling.model_dump(mode="json", exclude_none=True)
            parameters["rope_type"] = scaling.pop("kind")
            parameters.update(scaling)
        return {"rope_parameters": dict(sorted(parameters.items()))}

    def _given(self, config: Mapping[str, Json], *, where: str) -> dict[str, Json]:
        found = [key for key in ("rope_parameters", "rope_scaling") if config.get(key)]
        if len(found) == 2 and config["rope_parameters"] != config["rope_scaling"]:
            raise ArchError(f"{where}: rope_parameters and rope_scaling disagree, want one of them")
        value: Json = config[found[0]] if found else {}
        if not isinstance(value, dict):
            raise ArchError(f"{where}: {found[0]} is {type(value).__name__}, want an object")
        return cast("dict[str, Json]", value)


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
    known = {*_SHARED, *required, *optional}
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
    original = "original_max_position_embeddings"
    if original in values and values[original] is None:
        values[original] = config.get("max_position_embeddings")
    as_float = {k: float(v) if k in _FLOATS and v is not None else v for k, v in values.items()}
    return {"kind": kind, **as_float}
