"""PEFT folders: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from llm_ckpt.errors import FormatError, first_few
from llm_ckpt.formats.hf import header_bytes, read_header, read_json
from llm_ckpt.formats.slab import Files, Slab
from llm_ckpt.formats.stream import NewFile, write_file
from llm_ckpt.layout import whole
from llm_ckpt.lora import AdapterConfig, parse_adapter_config
from llm_ckpt.stacked_experts import MATRICES, Stacked, cut, stacked
from llm_ckpt.table import Part

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_OR_WEIGHT = r"(\.weight)?"
_SAME = 1e-9
_PART = re.compile(
    r"(?P<module>.+?)\.(?:(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?:\.weight)?|modules_to_save\.(?P<saved>.+)|(?P<plain>[^.]+))"
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """The adapter of one weight; `is_embedding` ones lie transposed.

    Of a weight that is one of `experts` that PEFT adapts together, `a` and `b` are those of all,
    and `which` says which it is.
    """

    a: Slab
    b: Slab
    magnitude: Slab | None = None
    is_embedding: bool = False
    which: Stacked | None = None
    experts: int = 1

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0] // self.experts

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in] of the weight, [in, out] of an embedding."""
        halves = 1 if self.which is None or self.which.half is None else 2
        out, inputs = self.b.shape[0] // halves, self.a.shape[1]
        return (inputs, out) if self.is_embedding else (out, inputs)

    def read(self, files: Files) -> tuple[Tensor, Tensor, Tensor | None]:
        """A [rank, in], B [out, rank] and the lengths of DoRA [out], of an embedding [in]."""
        a, b = read_slab(files, self.a), read_slab(files, self.b)
        if self.which is not None:
            a, b = cut(a, b, self.which, experts=self.experts)
        if self.is_embedding:
            a, b = b.T, a.T
        magnitude = None if self.magnitude is None else read_slab(files, self.magnitude).flatten()
        return a, b, magnitude


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder: by Hugging Face weight name, what is added and what is replaced.

    `together` are parameters of transformers that hold a layer's experts; `on` takes them apart.
    """

    folder: Path
    config: AdapterConfig
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, Slab]
    together: Mapping[str, LowRank]

    def on(self, parts: Iterable[Part]) -> "Adapter":
        """The same of a model made of `parts`, every expert of its own, under its part's key.

        Raises FormatError for a parameter that the model does not have.
        """
        found = [(part.key, where) for part in parts if (where := stacked(part)) is not None]
        low_rank, left = dict(self.low_rank), set(self.together)
        for key, where in found:
            if (one := self.together.get(where.parameter)) is not None:
                low_rank[key] = self._of_expert(one, where)
                left.discard(where.parameter)
        if left:
            known = first_few(sorted({where.parameter for _, where in found})) or "none"
            raise FormatError(
                f"{self.folder}: {sorted(left)[0]} is not in the base; parameters that hold its "
                f"experts: {known}"
            )
        return replace(self, low_rank=low_rank, together={})

    def scaling(self, key: str) -> float:
        """The factor of B·A of a weight, by its key."""
        one = self.low_rank[key]
        if one.which is not None:
            module = one.which.parameter
        else:
            module = key if self.config.is_parameter(key) else key.removesuffix(".weight")
        return self.config.scaling(module, one.rank)

    def _of_expert(self, one: LowRank, where: Stacked) -> LowRank:
        rank, rows = self.config.rank(where.parameter), one.a.shape[0]
        if rows % rank or where.expert >= rows // rank:
            raise FormatError(
                f"{self.folder}: {where.parameter}: A has {rows} rows, which at rank {rank} are no "
                f"whole number of experts that holds number {where.expert}"
            )
        return replace(one, which=where, experts=rows // rank)

    def is_trained(self, key: str) -> bool:
        """Whether a replaced weight learned, and is no copy that PEFT keeps of a base's table."""
        return self.config.is_saved(key.rpartition(".")[0])

    def names(self) -> set[str]:
        """Hugging Face names of the weights that it changes."""
        return {*self.low_rank, *self.replaced}


def read_adapter(folder: Path) -> Adapter:
    """Open an adapter folder; only headers are read."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FormatError(f"{folder / name}: file is missing; want a PEFT adapter folder")
    where = str(folder / CONFIG)
    config = parse_adapter_config(read_json(folder / CONFIG), where=where)
    modules: dict[str, dict[str, Slab]] = {}
    replaced: dict[str, Slab] = {}
    for name, slab in read_header(folder / WEIGHTS).items():
        match = _PART.fullmatch(name.removeprefix(_PREFIX))
        if match is None:
            raise FormatError(f"{folder / WEIGHTS}: {name!r} is not a name that PEFT writes")
        if match["kind"]:
            modules.setdefault(match["module"], {})[match["kind"]] = slab
        else:
            # Of embeddings peft saves the base beside the adapter: their rows may have grown.
            module = match["module"].removesuffix(".base_layer")
            replaced[f"{module}.{match['saved'] or match['plain']}"] = slab
    inside = str(folder / WEIGHTS)
    of_parameters = _parameters(modules, config, where=inside)
    found = {
        of_parameters.get(module, f"{module}.weight"): _low_rank(
            module, parts, config, where=inside
        )
        for module, parts in modules.items()
    }
    if not found and not replaced:
        raise FormatError(f"{folder / WEIGHTS}: holds no tensors")
    together = {name: found.pop(name) for name in of_parameters.values()}
    return Adapter(folder, config, found, replaced, together)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenConfig:
    """What an adapter_config.json says beside rank and modules."""

    alpha: float
    use_rslora: bool = False
    dropout: float = 0.0
    base: str | None = None

    def scaling(self, rank: int) -> float:
        """What B·A of that rank is multiplied by."""
        return self.alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFactors:
    """A [rank, in], B [out, rank] and DoRA's lengths [out], of an embedding [in], of a module.

    `scaling`, what B·A is multiplied by, is None where it is the whole folder's.
    """

    a: Tensor
    b: Tensor
    magnitude: Tensor | None = None
    is_embedding: bool = False
    scaling: float | None = None

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    def tensors(self, module: str) -> dict[str, Tensor]:
        """By the names that PEFT has for them; of embeddings they lie transposed."""
        if self.is_embedding:
            named = {
                f"{module}.lora_embedding_A": self.b.T,
                f"{module}.lora_embedding_B": self.a.T,
            }
        else:
            named = {f"{module}.lora_A.weight": self.a, f"{module}.lora_B.weight": self.b}
        if self.magnitude is not None:
            named[f"{module}.lora_magnitude_vector"] = self.magnitude
        return named


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Adapters that PEFT has of parameters (`target_parameters`), not of modules.

    `factors` are by parameter of transformers that holds the `experts` of a layer; `plain` are
    modules whose weight alone is adapted so.
    """

    factors: Mapping[str, ModuleFactors]
    experts: int
    plain: Set[str]

    def document(self) -> dict[str, object]:
        """What adapter_config.json says of them beside ranks and alphas."""
        names = sorted({*self.factors, *(f"{module}.weight" for module in self.plain)})
        return {"target_parameters": names} if names else {}


_NOTHING: Mapping[str, Tensor] = MappingProxyType({})
_NO_PARAMETERS = Together(factors={}, experts=0, plain=frozenset())


def write_adapter(
    folder: Path,
    factors: Mapping[str, ModuleFactors],
    config: WrittenConfig,
    *,
    modules: set[str],
    rank: int | None = None,
    parameters: Together = _NO_PARAMETERS,
    saved: Mapping[str, Tensor] = _NOTHING,
) -> None:
    """Write a folder that peft loads; `factors` are by Hugging Face module.

    `modules` are all modules of the model: where names of the last part alone would adapt more of
    them, the whole names are written. `rank` is that of most, None for that of the first; those of
    another rank or scaling are named. `saved` are whole weights, by their Hugging Face names.
    """
    first = next(iter((factors or parameters.factors).values()))
    rank = rank or first.rank
    whole_names = factors.keys() - parameters.plain
    last = {name.rsplit(".", 1)[-1] for name in whole_names}
    meant = {name for name in modules if name.rsplit(".", 1)[-1] in last}
    targets = sorted(last if meant == whole_names else whole_names)
    document = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.use_rslora,
        "use_dora": first.magnitude is not None,
        "bias": "none",
        "target_modules": targets or None,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in saved}) or None,
        **parameters.document(),
        **_patterns(factors, parameters, config, rank=rank),
    }
    tensors = [
        (f"{_PREFIX}{name}", tensor)
        for module, one in {**factors, **_nested(parameters.factors)}.items()
        for name, tensor in one.tensors(module).items()
    ] + [(f"{_PREFIX}{name}", tensor) for name, tensor in saved.items()]
    folder.mkdir(parents=True, exist_ok=True)
    with NewFile(folder / WEIGHTS) as file:
        file.write(header_bytes([(n, t.dtype, tuple(t.shape)) for n, t in tensors]))
        for _, tensor in tensors:
            file.write_tensor(tensor.contiguous(), tensor.dtype)
        file.commit()
    write_file(folder / CONFIG, (json.dumps(document, indent=2) + "\n").encode())


def _patterns(
    factors: Mapping[str, ModuleFactors],
    parameters: Together,
    config: WrittenConfig,
    *,
    rank: int,
) -> dict[str, object]:
    """The ranks and alphas that are not those of the whole folder, by the names that PEFT asks for.

    A module whose weight is adapted as a parameter is asked for by the parameter's.
    """
    found = {
        re.escape(name) + (_OR_WEIGHT if name in parameters.plain else ""): (one, one.rank)
        for name, one in factors.items()
    } | {
        re.escape(name): (one, one.rank // parameters.experts)
        for name, one in parameters.factors.items()
    }
    ranks = {name: own for name, (_, own) in found.items() if own != rank}
    alphas: dict[str, float] = {}
    for name, (one, own) in found.items():
        scaling = config.scaling(rank) if one.scaling is None else one.scaling
        alpha = scaling / replace(config, alpha=1.0).scaling(own)
        if not math.isclose(alpha, config.alpha, rel_tol=_SAME):
            # As it was said, without the last bits of a division.
            alphas[name] = float(f"{alpha:.12g}")
    patterns = {"rank_pattern": ranks, "alpha_pattern": alphas}
    return {key: one for key, one in patterns.items() if one}


def _nested(together: Mapping[str, ModuleFactors]) -> Mapping[str, ModuleFactors]:
    """By the module that PEFT makes of each parameter (`_parameters`)."""
    found: dict[str, ModuleFactors] = {}
    for module in dict.fromkeys(name.rpartition(".")[0] for name in together):
        own = [name for m in MATRICES if (name := f"{module}.{m}") in together]
        for depth, name in enumerate(reversed(own)):
            found[module + ".base_layer" * depth] = together[name]
    return found


def _parameters(modules: Iterable[str], config: AdapterConfig, *, where: str) -> Mapping[str, str]:
    """Which modules of the file are adapters of parameters, and of which.

    Of several in one module PEFT nests them, the first of the module inmost (`base_layer`).
    """
    nested: dict[str, list[str]] = {}
    for name in sorted(modules, key=len, reverse=True):
        nested.setdefault(re.sub(r"(\.base_layer)+$", "", name), []).append(name)
    found: dict[str, str] = {}
    for module, names in nested.items():
        wanted = [
            f"{module}.{matrix}" for matrix in MATRICES if config.is_parameter(f"{module}.{matrix}")
        ]
        if len(names) != len(wanted) and (wanted or names[0] != module):
            raise FormatError(
                f"{where}: {module} has {len(names)} adapters, of its parameters "
                f"{', '.join(MATRICES)} target_parameters names {len(wanted)}"
            )
        found |= dict(zip(names, wanted, strict=True)) if wanted else {}
    return found


def _low_rank(
    module: str, parts: Mapping[str, Slab], config: AdapterConfig, *, where: str
) -> LowRank:
    is_embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A", "lora_B")
    wanted = {*names, *(["lora_magnitude_vector"] if config.use_dora else [])}
    if wanted != parts.keys():
        raise FormatError(
            f"{where}: {module} has {first_few(sorted(parts))}, want {sorted(wanted)}"
        )
    a, b = (parts[name] for name in names)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise FormatError(
            f"{where}: {module}: A {list(a.shape)} and B {list(b.shape)}, want [rank, in] and "
            "[out, rank]"
        )
    return LowRank(a, b, parts.get("lora_magnitude_vector"), is_embedding)


def read_slab(files: Files, slab: Slab) -> Tensor:
    """All of a stored tensor."""
    out = torch.empty(slab.shape, dtype=slab.dtype)
    files.read(slab, whole(slab.shape), out)
    return out
