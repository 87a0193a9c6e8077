"""The adapters of a run as PEFT folders, and whether a checkpoint's are of the same shape."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from llm_train.config import LoraConfig, RunConfig
from llm_train.edge.checkpoint_files import CheckpointError, write_json
from llm_train.interfaces import Columns, ExportAdapter, ExportWeights
from llm_train.model.build import Model
from llm_train.model.lora.first import AdapterError, FirstAdapter, adapted_linear
from llm_train.model.lora.quantized import Quantized, quantized_parts, restored
from llm_train.model.lora.tensors import SAVED, adapter_tensors
from llm_train.train.precision import DTYPES
from llm_train.weights import adapter_exporter, hf_exporter, open_adapter

Tensors = Mapping[str, torch.Tensor]
_EMBEDDING = "embedding."
# Ours, beside what peft reads.
_FACTS = "llm_train.json"
_SIDES = ("lora_A", "lora_B", "lora_magnitude", SAVED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Every whole tensor of the adapters, and what of the base's weights is in NF4, by name."""

    tensors: Tensors
    quantized: Mapping[str, frozenset[Quantized]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """Writes the adapters of a run beside its checkpoints."""

    lora: LoraConfig
    arch: Mapping[str, object]
    base: str | None
    export: ExportAdapter
    merged: "Merged | None"
    # Of linears, as the adapter has them that the run began with.
    columns: Mapping[str, Columns]

    @property
    def facts(self) -> Mapping[str, object]:
        """What else of a run changes its outputs, by key of `lora`."""
        lora = self.lora
        quantize = None if lora.quantize is None else lora.quantize.value
        return {
            "alpha / rank (or √rank)": lora.scaling,
            "quantize": quantize,
            "load's scalings, with digest": self._scalings_digest,
        }

    @property
    def _scalings_digest(self) -> str | None:
        """Of those that are not the run's own; None where all are."""
        own = {
            name: [scaling for _, scaling in columns]
            for name, columns in self.columns.items()
            if any(count and scaling != self.lora.scaling for count, scaling in columns)
        }
        return hashlib.sha256(repr(sorted(own.items())).encode()).hexdigest()[:12] if own else None

    def gathered(self, chunks: Sequence[Model]) -> Gathered:
        """All of them on rank 0; nothing on the others. Every rank calls it."""
        quantized = [part for chunk in chunks for part in quantized_parts(chunk)]
        mine = [part for chunk in chunks for part in _parts(chunk)], quantized
        is_first = dist.get_rank() == 0
        everywhere: list[Any] | None = [None] * dist.get_world_size() if is_first else None
        dist.gather_object(mine, everywhere, dst=0)
        wholes: dict[str, torch.Tensor] = {}
        for key, shape, offset, data in (one for part, _ in everywhere or () for one in part):
            whole = wholes.setdefault(key, data.new_zeros(shape))
            index = tuple(
                slice(start, start + count) for start, count in zip(offset, data.shape, strict=True)
            )
            whole[index] = data
        parts: dict[str, frozenset[Quantized]] = {}
        for one in (one for _, found in everywhere or () for one in found):
            parts[one.name] = parts.get(one.name, frozenset()) | {one}
        return Gathered(tensors=wholes, quantized=parts)

    def write(self, adapter: Gathered, output: Path, *, base_digest: str | None = None) -> None:
        """A PEFT folder of gathered adapters, and beside them which base they are for."""
        names = [key.rpartition(".") for key in adapter.tensors]
        modules = dict.fromkeys(name for name, _, side in names if side != SAVED)
        self.export(
            {f"{name}.weight": _factors(adapter.tensors, name) for name in modules},
            arch=self.arch,
            rank=self.lora.rank,
            alpha=self.lora.alpha,
            use_rslora=self.lora.rslora,
            dropout=self.lora.dropout,
            base=self.base,
            output=output,
            columns={
                f"{name}.weight": self.columns[linear]
                for name in modules
                if (linear := adapted_linear(name)) in self.columns
            },
            saved={
                name: adapter.tensors[f"{name}.{SAVED}"] for name, _, side in names if side == SAVED
            },
        )
        if base_digest is not None:
            write_json(output / _FACTS, {"base_digest": base_digest})


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Writes base and adapters of a run, which computes in `dtype`, as one Hugging Face model."""

    load: Path
    export: ExportWeights
    dtype: torch.dtype
    is_double: bool

    def write(
        self, adapter: Path, output: Path, *, quantized: Mapping[str, Collection[Quantized]]
    ) -> None:
        """The base with a PEFT folder merged into it: of weights in NF4, what the run has there."""

        def as_computed(name: str, weight: torch.Tensor) -> torch.Tensor:
            if name not in quantized:
                return weight
            return restored(weight, quantized[name], self.dtype, is_double=self.is_double)

        replace = as_computed if quantized else None
        self.export(self.load, iteration=None, output=output, adapter=adapter, replace=replace)


def first_adapter(lora: LoraConfig, folder: Path, arch: Mapping[str, object]) -> FirstAdapter:
    """The PEFT folder that a run begins with. Raises AdapterError where `lora` says otherwise."""
    source, facts = open_adapter(folder, arch=arch), folder / _FACTS
    for key, theirs, ours in (
        ("rank", source.rank, lora.rank),
        ("dora", source.is_dora, lora.dora),
        ("alpha / rank (or √rank)", source.scaling, lora.scaling),
    ):
        if theirs != ours:
            raise AdapterError(
                f"lora.load={folder}: its {key} is {theirs}, this run's lora has {ours}; want them "
                "equal"
            )
    digest = json.loads(facts.read_text())["base_digest"] if facts.is_file() else None
    return FirstAdapter(folder=folder, source=source, base_digest=digest)


def adapter_files(
    config: RunConfig, arch: Mapping[str, object], first: FirstAdapter | None = None
) -> AdapterFiles:
    """What writes the adapters of a run, which began as `first`. Raises ProviderError when nothing
    can.
    """
    assert config.lora is not None
    base = config.lora.base or config.model.load
    merged = None
    if config.save.hf:
        assert config.model.load is not None
        merged = Merged(
            load=config.model.load,
            export=hf_exporter(),
            dtype=DTYPES[config.train.precision],
            is_double=config.lora.double_quantize,
        )
    return AdapterFiles(
        lora=config.lora,
        arch=arch,
        base=None if base is None else str(base),
        export=adapter_exporter(),
        columns={} if first is None else first.columns,
        merged=merged,
    )


def same_adapters(wanted: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckpointError unless a checkpoint has the adapters that a run wants, no others."""
    ours = {entry.key: tuple(entry.global_shape) for entry in _entries(wanted)}
    found = dist_checkpointing.load_tensors_metadata(str(folder))
    theirs = {
        key: tuple(entry.global_shape)
        for key, entry in found.items()
        if key.rpartition(".")[2] in _SIDES and not key.startswith("optimizer.")
    }
    everywhere: list[dict[str, tuple[int, ...]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everywhere, ours)
    all_ours = {key: shape for part in everywhere for key, shape in part.items()}
    for key in sorted(all_ours.keys() | theirs.keys()):
        if all_ours.get(key) != theirs.get(key):
            raise CheckpointError(
                f"{folder}: {key} has shape {theirs.get(key)}, this run wants {all_ours.get(key)}: "
                "lora.target_modules, lora.modules_to_save, lora.rank or lora.dora have changed; "
                "want them as they were, or another save.path"
            )


def _entries(state: Mapping[str, Any]) -> Iterator[ShardedTensor]:
    models = {key: part for key, part in state.items() if key != "optimizer"}
    for entry in nested_values(models):
        built = entry.build() if isinstance(entry, ShardedTensorFactory) else {"": entry}
        yield from (one for one in nested_values(built) if isinstance(one, ShardedTensor))


def _parts(
    chunk: Model,
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], torch.Tensor]]:
    """Key, shape of the whole, offset and data of what this rank holds first."""
    for held in adapter_tensors(chunk):
        if held.replica == (0, 0, 0):
            for piece in held.pieces:
                data = held.tensor[piece.index].to("cpu", chunk.config.pipeline_dtype, copy=True)
                yield piece.key, piece.shape, piece.offset, data


def _factors(adapter: Tensors, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    a, b = adapter[f"{name}.lora_A"], adapter[f"{name}.lora_B"]
    if name.startswith(_EMBEDDING):
        # Of the table [V, hidden], whose rows a token takes.
        a, b = b.t(), a.t()
    return a, b, adapter.get(f"{name}.lora_magnitude")
