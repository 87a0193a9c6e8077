"""Adapters in Megatron v1 rank files, as PEFT's layers inside a Megatron model leave them there.

MindSpeed-LLM trains this way. `X.lora_A.default.weight` [rank, in] and `X.lora_B.default.weight`
[out, rank] stand beside `X.base_layer.weight`, or without it. A column-parallel X cuts B by rows
and every rank holds A; a row-parallel X cuts A by columns and every rank holds B.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llm_ckpt.arch import Arch
from llm_ckpt.blocks import Param
from llm_ckpt.errors import FormatError, LayoutError
from llm_ckpt.formats.megatron_v1 import Reading, piece_of, reading_of
from llm_ckpt.formats.rank_files import RankFile, open_ranks
from llm_ckpt.formats.rank_state import Piece
from llm_ckpt.formats.slab import Files
from llm_ckpt.formats.unpickle import Lazy
from llm_ckpt.layout import COLUMNS, WHOLE, Cut, cut, join, whole

SIDES = ("A", "B")
_SIDE = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.(?:\w+\.)?weight")


@dataclass(frozen=True, slots=True)
class Factors:
    """A [rank, in] and B [out, rank] of a whole parameter."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class MegatronAdapter:
    """Factors by canonical parameter name, and what their product is multiplied by."""

    factors: Mapping[str, Factors]
    scaling: float

    @property
    def rank(self) -> int:
        """The rank that all have."""
        return next(iter(self.factors.values())).a.shape[0]


def read_lora_v1(iteration: Path, arch: Arch, *, alpha: float | None = None) -> MegatronAdapter:
    """Every adapter of an iteration folder, joined over its ranks.

    `alpha` is for files whose args do not have `lora_alpha`.
    """
    ranks = [_as_weights(file) for file in open_ranks(iteration)]
    if not any(chunk for view, _ in ranks for chunk in view.chunks):
        raise FormatError(f"{iteration}: no lora_A or lora_B among the tensors of its ranks")
    reading = reading_of([view for view, _ in ranks], arch, where=str(iteration))
    pieces: dict[tuple[str, str], dict[int, Tensor]] = {}
    files = Files()
    for view, file in ranks:
        for piece, side, lazy in _sides(reading, view, file):
            tensor = torch.empty(lazy.shape, dtype=lazy.storage.dtype)
            files.read(file.zip.slab(lazy), whole(lazy.shape), tensor)
            pieces.setdefault((piece.param, side), {})[piece.shard.rank] = tensor
    files.close()
    factors = {
        name: _joined(name, pieces, reading.params[name], iteration)
        for name in sorted({name for name, _ in pieces})
    }
    if len(found := {one.a.shape[0] for one in factors.values()}) > 1:
        raise FormatError(f"{iteration}: adapters of several ranks {sorted(found)}, want one")
    rank = next(iter(found))
    given = getattr(ranks[0][1].args, "lora_alpha", None) if alpha is None else alpha
    if given is None:
        raise FormatError(f"{iteration}: its args have no lora_alpha; give --lora-alpha")
    return MegatronAdapter(factors, float(given) / rank)


def side_pieces(
    stored_name: str, piece: Piece, param: Param, factors: Factors
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors that a rank holds of the factors of a parameter."""
    for side, tensor in zip(SIDES, (factors.a, factors.b), strict=True):
        part = cut(tensor, _side_cut(param, side), piece.shard, where=stored_name)
        yield f"{stored_name.removesuffix('.weight')}.lora_{side}.default.weight", part


def _side_cut(param: Param, side: str) -> Cut:
    """How tensor parallelism divides one factor of a parameter."""
    if param.cut.padded:
        raise LayoutError(f"{param.name}: vocabulary tensors have no adapters in this form")
    if param.cut.axis == 1:
        return COLUMNS if side == "A" else WHOLE
    return WHOLE if side == "A" else param.cut


def _as_weights(file: RankFile) -> tuple[RankFile, RankFile]:
    """The file with each A in the place of the weight it is for, and the file as it is.

    Layers and experts are then found as they are in a file of weights: A has its columns.
    """
    chunks: list[dict[str, Lazy]] = []
    for chunk in range(len(file.chunks)):
        matches = ((_SIDE.fullmatch(name), lazy) for name, lazy in file.adapters(chunk))
        chunks.append(
            {f"{m['module']}.weight": lazy for m, lazy in matches if m and m["side"] == "A"}
        )
    return replace(file, chunks=tuple(chunks)), file


def _sides(reading: Reading, view: RankFile, file: RankFile) -> Iterator[tuple[Piece, str, Lazy]]:
    for chunk in range(len(file.chunks)):
        for local, lazy in file.adapters(chunk):
            match = _SIDE.fullmatch(local)
            piece = piece_of(reading, view, chunk, f"{match['module']}.weight") if match else None
            if match is None or piece is None:
                raise FormatError(f"{file.zip.path}: {local} adapts no weight of this model")
            yield piece, match["side"], lazy


def _joined(
    name: str, pieces: Mapping[tuple[str, str], Mapping[int, Tensor]], param: Param, where: Path
) -> Factors:
    sides: list[Tensor] = []
    for side in SIDES:
        if (name, side) not in pieces:
            raise FormatError(f"{where}: {name} has no lora_{side}")
        held, how = pieces[name, side], _side_cut(param, side)
        every = [held[rank] for rank in sorted(held)]
        sides.append(every[0] if how.axis is None else join(every, how))
    a, b = sides
    if (b.shape[0], a.shape[1]) != param.shape or a.shape[0] != b.shape[1]:
        raise FormatError(
            f"{where}: {name}: A {list(a.shape)} and B {list(b.shape)} do not make "
            f"{list(param.shape)}"
        )
    return Factors(a, b)
