"""One reader over Hugging Face folders, Megatron v1 and Megatron v2: `open_source`.

The provider of the `llm_train.weights` and `llm_infer.weights` entry points. Names are
megatron-core's local-spec names with global layer numbers; only the wanted bytes are read.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from llm_ckpt.adapt import AdaptedTensors, Change, MegatronChange, PeftChange, Replace, Replaced
from llm_ckpt.arch import Arch
from llm_ckpt.blocks import Param
from llm_ckpt.collecting import without_collecting
from llm_ckpt.edge.folder import (
    TRACKER,
    Located,
    companions,
    locate,
    read_arch,
    refuse_adapter_alone,
    samples_consumed,
)
from llm_ckpt.errors import CheckpointError, first_few, suggest
from llm_ckpt.families import family_named
from llm_ckpt.families.mtp import without_unstored
from llm_ckpt.formats.hf import CONFIG, read_folder, read_json
from llm_ckpt.formats.lora_v1 import read_lora_v1
from llm_ckpt.formats.megatron_v1 import read_v1
from llm_ckpt.formats.optimizer_state import (
    OptimizerState,
    has_v2_state,
    is_trained,
    read_v2_state,
    split_state,
)
from llm_ckpt.formats.optimizer_v1 import has_v1_state, read_v1_state
from llm_ckpt.formats.peft import read_adapter
from llm_ckpt.formats.quantized import dequantized
from llm_ckpt.formats.torch_dist import read_v2
from llm_ckpt.layout import Shape, Shard
from llm_ckpt.table import Table
from llm_ckpt.tensors import HfTensors, MegatronTensors, Streams, Tensors

_LEFT_OUT = "{where}: {count} tensors that arch.json cannot describe are left out: {names}"
_UNSTORED = (
    "{where}: config.json says {arch.mtp.layers} prediction layers (MTP), but no tensor of theirs "
    "is stored; they are left out"
)


class WeightSource:
    """The weights of one checkpoint. Also a context manager."""

    def __init__(
        self,
        *,
        table: Table,
        tensors: Tensors,
        located: Located,
        companions: Sequence[Path],
        notes: Sequence[str] = (),
        is_adapted: bool = False,
    ) -> None:
        self._arch, self._table, self._tensors = table.arch, table, tensors
        self._companions, self._notes = tuple(companions), tuple(notes)
        self._is_adapted = is_adapted
        self.located = located

    @property
    def arch(self) -> dict[str, Any]:
        """The arch.json document."""
        return self._arch.document()

    @property
    def architecture(self) -> Arch:
        """The same, as a value."""
        return self._arch

    @property
    def table(self) -> Table:
        """The family's rules for this model."""
        return self._table

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user ought to know of how the checkpoint was understood, a line each."""
        return self._notes

    @property
    def iteration(self) -> int | None:
        """Training iteration of a Megatron checkpoint, None for Hugging Face."""
        return self.located.iteration

    @cached_property
    def consumed_samples(self) -> int:
        """Training samples behind a Megatron checkpoint; 0 where nothing says it."""
        return samples_consumed(self.located)

    @cached_property
    def has_optimizer(self) -> bool:
        """Whether optimizer state lies beside the weights, of whatever form."""
        has = {"v1": has_v1_state, "v2": has_v2_state}
        layout = self.located.layout
        return layout != "hf" and has[layout](self.located.weights)

    @cached_property
    def optimizer(self) -> OptimizerState | None:
        """The optimizer state, None without one or when an adapter changes the weights.

        Raises where its form cannot be read. Its tensors are read by `read`, under its names.
        """
        if not self.has_optimizer or self._is_adapted:
            return None
        read = read_v1_state if self.located.layout == "v1" else read_v2_state
        return read(self.located.weights, self._arch)

    def names(self) -> list[str]:
        """Canonical names, in model order. A tied model has no `output_layer.weight`."""
        return list(self._table.entries)

    def shape(self, name: str) -> Shape:
        """Full shape without vocabulary padding."""
        return self._param(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype."""
        return self._tensors_of(name).dtype(self._param(name).name)

    def read(
        self,
        name: str,
        shard: tuple[int, int] = (0, 1),
        *,
        padded_vocab_size: int | None = None,
    ) -> Tensor:
        """The piece that rank `shard[0]` of `shard[1]` tensor-parallel ranks holds.

        A gated projection is `[gate; up]` of that rank. Parameters every rank holds come whole.
        Vocabulary tensors are first padded with zero rows to `padded_vocab_size`.
        """
        padded = self._padded(name, padded_vocab_size)
        return self._tensors_of(name).read(self._param(name), Shard(*shard), padded)

    def blocks(
        self,
        name: str,
        shard: tuple[int, int] = (0, 1),
        *,
        padded_vocab_size: int | None = None,
    ) -> Iterator[Tensor]:
        """What `read` gives, a few rows at a time where that can be; each is valid until the next.

        The blocks lie end to end on axis 0. Writing them so costs half of what whole tensors do.
        """
        param, padded = self._param(name), self._padded(name, padded_vocab_size)
        tensors = self._tensors_of(name)
        if isinstance(tensors, Streams) and param.shape:
            return tensors.blocks(param, Shard(*shard), padded)
        return iter([tensors.read(param, Shard(*shard), padded)])

    def companions(self) -> list[Path]:
        """Tokenizer and configuration files that travel with the weights."""
        return list(self._companions)

    def close(self) -> None:
        """Close files."""
        opened: dict[str, MegatronTensors] = self.__dict__.get("_states", {})  # made on first use
        for tensors in (self._tensors, *opened.values()):
            tensors.close()

    def __enter__(self) -> "WeightSource":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @cached_property
    def _states(self) -> dict[str, MegatronTensors]:
        if self.optimizer is None:
            return {}
        return {kind: MegatronTensors(tiled) for kind, tiled in self.optimizer.kinds.items()}

    def _tensors_of(self, name: str) -> Tensors:
        kind, param = split_state(name)
        if kind and (kind not in self._states or not is_trained(param)):
            raise CheckpointError(f"{self.located.root}: no optimizer state {name!r}")
        return self._states[kind] if kind else self._tensors

    def _padded(self, name: str, vocab_size: int | None) -> Shape:
        """The full shape with `vocab_size` rows, if it is a vocabulary's."""
        param = self._param(name)
        if vocab_size is None or not param.cut.padded:
            return param.shape
        if vocab_size < param.shape[0]:
            raise CheckpointError(f"padded_vocab_size({vocab_size}) < vocab_size({param.shape[0]})")
        return (vocab_size, *param.shape[1:])

    def _param(self, name: str) -> Param:
        name = split_state(name)[1]
        if name not in self._table.entries:
            hint = suggest(name, self._table.entries)
            raise CheckpointError(f"{self.located.root}: no parameter {name!r}{hint}")
        return self._table.entries[name].param


@without_collecting()
def open_source(
    path: Path,
    *,
    iteration: int | None = None,
    arch: Path | None = None,
    adapter: Path | None = None,
    lora_alpha: float | None = None,
    replace: Replace | None = None,
) -> WeightSource:
    """Open a checkpoint of any of the three formats; names and shapes are checked at once.

    `iteration` chooses one of a training run's (default: the tracker's). `arch` is an arch.json or
    config.json for a Megatron checkpoint that has none beside it. `adapter` is a PEFT folder, or a
    Megatron folder with low-rank factors (which may be `path` itself), to merge into the weights it
    is for; `lora_alpha` is for a Megatron one that does not say. `replace` gives what stands in the
    place of weights before that.
    """
    located = locate(Path(path), iteration=iteration)
    refuse_adapter_alone(located)
    model = read_arch(located, arch)
    family = family_named(model.family, where=str(located.root))
    table, notes = family.table(model), list[str]()
    tensors: Tensors
    if located.layout == "hf":
        where, config = str(located.root), read_json(located.root / CONFIG)
        named = family.with_prefix(read_folder(located.root))
        stored = dequantized(named, config, where=where)
        if (found := without_unstored(table, stored)) != model:
            notes.append(_UNSTORED.format(where=where, arch=model))
            table = family.table(found)
        if lost := family.not_converted(stored):
            notes.append(_LEFT_OUT.format(where=where, count=len(lost), names=first_few(lost)))
        tensors = HfTensors(table, stored, where=where)
    else:
        tensors = MegatronTensors(
            read_v1(located.weights, model, ignores_adapters=adapter is not None)
            if located.layout == "v1"
            else read_v2(located.weights, model)
        )
    if replace is not None:
        tensors = AdaptedTensors(tensors, Replaced(replace), table)
    if adapter is not None:
        change = _change(adapter, table, alpha=lora_alpha)
        tensors = AdaptedTensors(tensors, change, table)
    return WeightSource(
        table=table,
        tensors=tensors,
        located=located,
        companions=companions(located.root),
        notes=notes,
        is_adapted=adapter is not None or replace is not None,
    )


def _change(adapter: Path, table: Table, *, alpha: float | None) -> Change:
    """An adapter of either form."""
    if (adapter / TRACKER).is_file():
        weights = locate(adapter).weights
        return MegatronChange(read_lora_v1(weights, table.arch, alpha=alpha))
    return PeftChange(read_adapter(adapter), table)
