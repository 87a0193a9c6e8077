"""PEFT folders: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llm_ckpt.errors import FormatError, first_few
from llm_ckpt.formats.hf import header_bytes, read_header, read_json
from llm_ckpt.formats.slab import Files, Slab
from llm_ckpt.formats.stream import NewFile, write_file
from llm_ckpt.layout import whole
from llm_ckpt.lora import AdapterConfig, parse_adapter_config

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+?)\.(?:(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?:\.weight)?|modules_to_save\.(?P<saved>.+)|(?P<plain>[^.]+))"
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """The adapter of one weight; `is_embedding` ones lie transposed."""

    a: Slab
    b: Slab
    magnitude: Slab | None
    is_embedding: bool

    def read(self, files: Files) -> tuple[Tensor, Tensor, Tensor | None]:
        """A [rank, in], B [out, rank] and the lengths of DoRA [out]."""
        a, b = _read(files, self.a), _read(files, self.b)
        if self.is_embedding:
            a, b = b.T, a.T
        magnitude = None if self.magnitude is None else _read(files, self.magnitude).flatten()
        return a, b, magnitude


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder: by Hugging Face weight name, what is added and what is replaced."""

    folder: Path
    config: AdapterConfig
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, Slab]

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
    low_rank = {
        f"{module}.weight": _low_rank(module, parts, config, where=str(folder / WEIGHTS))
        for module, parts in modules.items()
    }
    if not low_rank and not replaced:
        raise FormatError(f"{folder / WEIGHTS}: holds no tensors")
    return Adapter(folder, config, low_rank, replaced)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenConfig:
    """What an adapter_config.json says beside rank and modules."""

    alpha: float
    use_rslora: bool = False
    dropout: float = 0.0
    base: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFactors:
    """A [rank, in], B [out, rank] and DoRA's lengths [out] of one Hugging Face module."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None = None
    is_embedding: bool = False

    def tensors(self, module: str) -> dict[str, Tensor]:
        """By the names that PEFT has for them; of embeddings they lie transposed."""
        if self.is_embedding:
            return {f"{module}.lora_embedding_A": self.b.T, f"{module}.lora_embedding_B": self.a.T}
        named = {f"{module}.lora_A.weight": self.a, f"{module}.lora_B.weight": self.b}
        if self.magnitude is not None:
            named[f"{module}.lora_magnitude_vector"] = self.magnitude
        return named


def write_adapter(
    folder: Path,
    factors: Mapping[str, ModuleFactors],
    config: WrittenConfig,
    *,
    modules: set[str],
) -> None:
    """Write a folder that peft loads; `factors` are by Hugging Face module.

    `modules` are all modules of the model: where names of the last part alone would adapt more of
    them, the whole names are written.
    """
    first = next(iter(factors.values()))
    last = {name.rsplit(".", 1)[-1] for name in factors}
    meant = {name for name in modules if name.rsplit(".", 1)[-1] in last}
    document = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base,
        "inference_mode": True,
        "r": first.a.shape[0],
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.use_rslora,
        "use_dora": first.magnitude is not None,
        "bias": "none",
        "target_modules": sorted(last if meant == factors.keys() else factors),
    }
    tensors = [
        (f"{_PREFIX}{name}", tensor)
        for module, one in factors.items()
        for name, tensor in one.tensors(module).items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with NewFile(folder / WEIGHTS) as file:
        file.write(header_bytes([(n, t.dtype, tuple(t.shape)) for n, t in tensors]))
        for _, tensor in tensors:
            file.write_tensor(tensor.contiguous(), tensor.dtype)
        file.commit()
    write_file(folder / CONFIG, (json.dumps(document, indent=2) + "\n").encode())


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


def _read(files: Files, slab: Slab) -> Tensor:
    out = torch.empty(slab.shape, dtype=slab.dtype)
    files.read(slab, whole(slab.shape), out)
    return out
