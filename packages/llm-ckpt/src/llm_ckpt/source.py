"""One reader over Hugging Face folders, Megatron v1 and Megatron v2: `open_source`.

The provider of the `llm_train.weights` and `llm_infer.weights` entry points. Names are
megatron-core's local-spec names with global layer numbers; only the wanted bytes are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from llm_ckpt.arch import Arch
from llm_ckpt.blocks import Param
from llm_ckpt.edge.folder import Located, companions, locate, read_arch
from llm_ckpt.errors import CheckpointError, FormatError, suggest
from llm_ckpt.families import family_named
from llm_ckpt.families.mtp import without_unstored
from llm_ckpt.formats.hf import CONFIG, read_folder, read_json
from llm_ckpt.formats.megatron_v1 import read_v1
from llm_ckpt.formats.quantized import Stored, dequantized
from llm_ckpt.formats.slab import Files
from llm_ckpt.formats.tiled import Tiled
from llm_ckpt.formats.torch_dist import read_v2
from llm_ckpt.layout import Box, Shape, Shard, assemble, cut, piece_boxes
from llm_ckpt.table import Entry, Table

_UNSTORED = (
    "{where}: config.json says {arch.mtp.layers} prediction layers (MTP), but no tensor of theirs "
    "is stored; they are left out"
)


class Tensors(Protocol):
    """What a format gives: dtypes, and any rank's piece of any parameter."""

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype."""
        ...

    def read(self, param: Param, shard: Shard, padded: Shape) -> Tensor:
        """The piece of `param` that `shard` holds; `padded` is its full shape there."""
        ...

    def close(self) -> None:
        """Close files."""
        ...


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
    ) -> None:
        self._arch, self._table, self._tensors = table.arch, table, tensors
        self._companions, self._notes = tuple(companions), tuple(notes)
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

    def names(self) -> list[str]:
        """Canonical names, in model order. A tied model has no `output_layer.weight`."""
        return list(self._table.entries)

    def shape(self, name: str) -> Shape:
        """Full shape without vocabulary padding."""
        return self._param(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype."""
        return self._tensors.dtype(self._param(name).name)

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
        param = self._param(name)
        padded = param.shape
        if padded_vocab_size is not None and param.cut.padded:
            if padded_vocab_size < param.shape[0]:
                raise CheckpointError(
                    f"padded_vocab_size({padded_vocab_size}) < vocab_size({param.shape[0]})"
                )
            padded = (padded_vocab_size, *param.shape[1:])
        return self._tensors.read(param, Shard(*shard), padded)

    def companions(self) -> list[Path]:
        """Tokenizer and configuration files that travel with the weights."""
        return list(self._companions)

    def close(self) -> None:
        """Close files."""
        self._tensors.close()

    def __enter__(self) -> "WeightSource":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _param(self, name: str) -> Param:
        if name not in self._table.entries:
            hint = suggest(name, self._table.entries)
            raise CheckpointError(f"{self.located.root}: no parameter {name!r}{hint}")
        return self._table.entries[name].param


def open_source(
    path: Path, *, iteration: int | None = None, arch: Path | None = None
) -> WeightSource:
    """Open a checkpoint of any of the three formats; names and shapes are checked at once.

    `iteration` chooses one of a training run's (default: the tracker's). `arch` is an arch.json or
    config.json for a Megatron checkpoint that has none beside it.
    """
    located = locate(Path(path), iteration=iteration)
    model = read_arch(located, arch)
    family = family_named(model.family, where=str(located.root))
    table, notes = family.table(model), list[str]()
    tensors: Tensors
    if located.layout == "hf":
        where, config = str(located.root), read_json(located.root / CONFIG)
        stored = dequantized(read_folder(located.root), config, where=where)
        if (found := without_unstored(table, stored)) != model:
            notes.append(_UNSTORED.format(where=where, arch=model))
            table = family.table(found)
        tensors = HfTensors(table, stored, where=where)
    else:
        read = read_v1 if located.layout == "v1" else read_v2
        tensors = MegatronTensors(read(located.weights, model))
    return WeightSource(
        table=table,
        tensors=tensors,
        located=located,
        companions=companions(located.root),
        notes=notes,
    )


class HfTensors:
    """Parameters made from Hugging Face tensors by the family's rules."""

    def __init__(self, table: Table, stored: Mapping[str, Stored], *, where: str) -> None:
        table.check_hf_names(stored, where=where)
        for part in table.hf_parts():
            if stored[part.name].shape != part.stored_shape:
                raise FormatError(
                    f"{stored[part.name].path}: {part.name} has shape "
                    f"{list(stored[part.name].shape)}, want {list(part.stored_shape)}"
                )
        self._table, self._stored, self._files = table, stored, Files()
        self._check_copies()

    def dtype(self, name: str) -> torch.dtype:
        """The parts' common dtype."""
        found = {part.name: self._stored[part.name].dtype for part in self._entry(name).parts}
        if len(set(found.values())) > 1:
            text = ", ".join(f"{part} {dtype}" for part, dtype in found.items())
            raise FormatError(f"{name}: its parts have different dtypes: {text}")
        return next(iter(found.values()))

    def read(self, param: Param, shard: Shard, padded: Shape) -> Tensor:
        """Read each part's piece, then merge."""
        entry, arch = self._entry(param.name), self._table.arch
        self.dtype(param.name)
        if not entry.rule.commutes(shard.size, arch):
            merged = self.read(param, Shard(0, 1), param.shape)
            return cut(merged, param.cut, shard, where=param.name)
        pieces: list[Tensor] = []
        for part in entry.parts:
            stored = self._stored[part.name]
            if part.index is not None:
                stored = stored.entry(part.index)
            shape = padded if part.cut.padded else part.shape
            boxes = piece_boxes(shape, part.cut, shard, where=part.name)
            pieces.append(assemble(boxes, stored.shape, stored.dtype, _Reader(self._files, stored)))
        return entry.rule.merge(pieces, arch)

    def close(self) -> None:
        """Close files."""
        self._files.close()

    def _entry(self, name: str) -> Entry:
        return self._table.entries[name]

    def _check_copies(self) -> None:
        for copy, original in self._table.copies.items():
            if copy in self._stored and not self._equal(copy, original):
                raise CheckpointError(
                    f"{self._stored[copy].path}: {copy} differs from {original}, but "
                    "tie_word_embeddings says they are one tensor"
                )

    def _equal(self, left: str, right: str) -> bool:
        a, b = self._stored[left], self._stored[right]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return False
        step = max(1, (8 << 20) // max(1, prod(a.shape[1:]) * a.dtype.itemsize))
        for start in range(0, a.shape[0], step):
            stop = min(start + step, a.shape[0])
            box = Box((start, 0), (stop, a.shape[1]))
            pair = [torch.empty(box.shape, dtype=a.dtype) for _ in (a, b)]
            for stored, out in zip((a, b), pair, strict=True):
                stored.read(self._files, box, out)
            if not torch.equal(pair[0].view(torch.uint8), pair[1].view(torch.uint8)):
                return False
        return True


class MegatronTensors:
    """Parameters assembled from the tiles of a Megatron checkpoint."""

    def __init__(self, tiled: Tiled) -> None:
        self._tiled, self._files = tiled, Files()

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype."""
        return self._tiled.dtypes[name]

    def read(self, param: Param, shard: Shard, padded: Shape) -> Tensor:
        """Copy the overlap of every tile with the wanted boxes."""
        boxes = piece_boxes(padded, param.cut, shard, where=param.name)

        def fill(box: Box, out: Tensor) -> None:
            self._tiled.read(self._files, param.name, box, out)

        return assemble(boxes, param.shape, self.dtype(param.name), fill)

    def close(self) -> None:
        """Close files."""
        self._files.close()


@dataclass(frozen=True, slots=True)
class _Reader:
    files: Files
    stored: Stored

    def __call__(self, box: Box, out: Tensor) -> None:
        self.stored.read(self.files, box, out)
