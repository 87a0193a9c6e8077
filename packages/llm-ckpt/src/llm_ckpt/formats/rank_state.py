"""What one rank's state dict holds: stored tensors, each made of pieces of parameters.

The one description that the v1 writer follows and the v1 reader compares with what it finds.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod

from llm_ckpt.arch import Arch
from llm_ckpt.blocks import Param
from llm_ckpt.errors import LayoutError
from llm_ckpt.formats.dialects import Dialect, ExpertLayout, Ranges, Spelling
from llm_ckpt.layout import FULL, Box, Shape, Shard, piece_boxes, piece_shape
from llm_ckpt.params import EMBEDDING, OUTPUT, expected_params
from llm_ckpt.placement import FIRST, ChunkPlace, Rank, Slot

_IN_LAYER = re.compile(r"(decoder\.layers\.\d+\.|mtp\.layers\.\d+\.transformer_layer\.)(.+)")
_EXPERT = re.compile(r"(.*experts\.)local_experts\.\d+\.(linear_fc[12])\.(weight|bias)")
_PREDICTION = re.compile(r"mtp\.layers\.(\d+)\.")
_DECODER_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a stored tensor: the rows `rows` (None = all) of a rank's piece of a parameter."""

    param: str
    shard: Shard
    rows: Ranges | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a state dict: pieces end to end in memory, each transposed if it says so."""

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]
    is_transposed: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """One parameter of every expert of a layer; `at` ends in `experts.`."""

    at: str
    linear: str
    kind: str
    params: tuple[Param, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A layer (or, with an empty prefix, what belongs to none): parameters by relative name."""

    prefix: str
    params: Mapping[str, Param]
    experts: tuple[Experts, ...]

    @property
    def layer(self) -> int | None:
        """Number of the decoder layer, None for other blocks."""
        match = _DECODER_LAYER.fullmatch(self.prefix)
        return int(match[1]) if match else None


def blocks_of(params: Iterable[Param]) -> tuple[Block, ...]:
    """Parameters by layer, in model order; the block of no layer is split where layers begin."""
    return tuple(_block(prefix, list(run)) for prefix, run in groupby(params, key=_prefix))


def chunk_blocks(
    arch: Arch, slots: Sequence[Slot], head: ChunkPlace
) -> Mapping[ChunkPlace, tuple[tuple[str, Block], ...]]:
    """The blocks of each chunk, with the prefix that each has there.

    The embedding is in the first chunk, the final norm, the output layer and prediction layers are
    at `head`. Where that is another chunk it has its own copy of an embedding that prediction
    layers or a tied output layer need.
    """
    chunks: dict[ChunkPlace, list[tuple[str, Block]]] = {}
    blocks = blocks_of(expected_params(arch))
    rest = {name: p for block in blocks if not block.prefix for name, p in block.params.items()}
    embedding = {name: p for name, p in rest.items() if name.startswith("embedding.")}
    chunks[FIRST] = [("", Block("", embedding, ()))]
    for block in (block for block in blocks if block.prefix):
        place, prefix = head, block.prefix
        if block.layer is not None:
            slot = slots[block.layer]
            place, prefix = ChunkPlace(slot.stage, slot.chunk), f"decoder.layers.{slot.local}."
        chunks.setdefault(place, []).append((prefix, block))
    last = {name: p for name, p in rest.items() if name not in embedding}
    if head != FIRST and arch.mtp is not None:
        chunks.setdefault(head, []).insert(0, ("", Block("", embedding, ())))
    if head != FIRST and arch.tie_embeddings:
        last[OUTPUT] = rest[EMBEDDING]
    chunks.setdefault(head, []).append(("", Block("", last, ())))
    return {place: tuple(found) for place, found in chunks.items()}


def spell(block: Block, tables: Sequence[Spelling]) -> tuple[Spelling, ...]:
    """The stored tensors of a block's parameters (its experts aside), in model order."""
    chosen: list[Spelling] = []
    numbers = sorted({int(m[1]) for name in block.params if (m := _PREDICTION.match(name))})
    for each in (one for table in tables for one in _numbered(table, numbers)):
        if all(part in block.params for part in each.parts) and (
            not each.needs or each.needs in block.params
        ):
            taken = any(each.stored == other.stored for other in chosen)
            chosen += [] if taken else [each]
    used = {part for spelling in chosen for part in spelling.parts}
    chosen += [Spelling(name, (name,)) for name in block.params if name not in used]
    order = {name: index for index, name in enumerate(block.params)}
    return tuple(sorted(chosen, key=lambda spelling: order[spelling.parts[0]]))


def spellings_found(block: Block, tables: Sequence[Spelling]) -> dict[str, tuple[Spelling, ...]]:
    """Every way that any of `tables` or the canonical names spell a block, by stored name."""
    numbers = sorted({int(m[1]) for name in block.params if (m := _PREDICTION.match(name))})
    found: dict[str, tuple[Spelling, ...]] = {
        name: (Spelling(name, (name,)),) for name in block.params
    }
    for each in (one for table in tables for one in _numbered(table, numbers)):
        if all(part in block.params for part in each.parts):
            found[each.stored] = (*found.get(each.stored, ()), each)
    return found


def stored_tensor(
    spelling: Spelling, prefix: str, block: Block, rank: Rank, arch: Arch, *, padded_vocab: int
) -> Stored:
    """What `rank` stores under a spelling."""
    pieces: list[Piece] = []
    heights: list[int] = []
    rest: Shape = ()
    for part in spelling.parts:
        param = block.params[part]
        shard = FULL if spelling.is_whole else rank.tensor
        shape = piece_shape(piece_boxes_of(param, shard, padded_vocab))
        rows = spelling.rows(arch, shape[0], rank.tensor) if spelling.rows else None
        heights.append(sum(b - a for a, b in rows) if rows is not None else shape[0])
        pieces.append(Piece(param.name, shard, rows))
        rest = shape[1:]
    return Stored(prefix + spelling.stored, (sum(heights), *rest), tuple(pieces))


def expert_tensors(
    experts: Experts, prefix: str, layout: ExpertLayout, rank: Rank
) -> Iterator[Stored]:
    """What `rank` stores of its block of experts."""
    count = len(experts.params) // rank.blocks
    mine = experts.params[rank.block * count : (rank.block + 1) * count]
    at, linear, kind = prefix + experts.at, experts.linear, experts.kind
    shape = piece_shape(piece_boxes_of(mine[0], rank.expert))
    pieces = [Piece(param.name, rank.expert) for param in mine]
    if layout == "grouped":
        yield _grouped(experts, at, shape, pieces)
        return
    for local, piece in enumerate(pieces):
        name = f"local_experts.{local}.{linear}.{kind}"
        yield Stored(at + (f"{linear}.{kind}{local}" if layout == "te" else name), shape, (piece,))


def rank_tensors(
    blocks: Iterable[tuple[str, Block]],
    rank: Rank,
    dialect: Dialect,
    arch: Arch,
    *,
    padded_vocab: int,
) -> Iterator[Stored]:
    """The state dict of a chunk on `rank`."""
    if dialect.name == "mindspeed" and arch.gdn is not None and rank.tensor.size > 1:
        raise LayoutError(
            f"tp({rank.tensor.size}): MindSpeed-LLM keeps linear attention whole, want tp 1"
        )
    for prefix, block in blocks:
        tables = dialect.spellings(arch, is_prediction=block.prefix.startswith("mtp."))
        for spelling in spell(block, tables):
            yield stored_tensor(spelling, prefix, block, rank, arch, padded_vocab=padded_vocab)
        for experts in block.experts:
            yield from expert_tensors(experts, prefix, dialect.experts, rank)


def piece_boxes_of(param: Param, shard: Shard, padded_vocab: int = 0) -> tuple[Box, ...]:
    """The boxes of a parameter that `shard` holds; vocabulary rows are padded when asked for."""
    shape = param.shape
    if param.cut.padded and padded_vocab:
        shape = (padded_vocab, *shape[1:])
    return piece_boxes(shape, param.cut, shard, where=param.name)


def picked_boxes(boxes: Sequence[Box], rows: Ranges | None) -> tuple[Box, ...]:
    """The boxes of some rows of a piece made of `boxes`, in the order of `rows`."""
    if rows is None:
        return tuple(boxes)
    picked: list[Box] = []
    for start, stop in rows:
        offset = 0
        for box in boxes:
            low, high = max(start - offset, 0), min(stop - offset, box.shape[0])
            if low < high:
                ends = (box.start[0] + low, *box.start[1:]), (box.start[0] + high, *box.stop[1:])
                picked.append(Box(*ends))
            offset += box.shape[0]
    return tuple(picked)


def is_expert(name: str) -> bool:
    """Whether a canonical name is a parameter of one expert."""
    return _EXPERT.fullmatch(name) is not None


def _grouped(experts: Experts, at: str, shape: Shape, pieces: Sequence[Piece]) -> Stored:
    """megatron-core's GroupedMLP: experts in turn, each [in, out], viewed as one matrix.

    `weight1` of [experts, hidden, rows] has the shape (hidden, experts * rows), `weight2` of
    [experts, columns, hidden] the shape (experts * columns, hidden).
    """
    if experts.kind == "bias":
        raise LayoutError(f"{at}{experts.linear}: grouped experts have no biases, want sequential")
    rows, columns = shape
    is_first = experts.linear == "linear_fc1"
    name = "weight1" if is_first else "weight2"
    whole = (columns, len(pieces) * rows) if is_first else (len(pieces) * columns, rows)
    assert prod(whole) == len(pieces) * prod(shape)
    return Stored(at + name, whole, tuple(pieces), is_transposed=True)


def _prefix(param: Param) -> str:
    match = _IN_LAYER.fullmatch(param.name)
    return match[1] if match else ""


def _block(prefix: str, params: Sequence[Param]) -> Block:
    named: dict[str, Param] = {}
    experts: dict[tuple[str, str, str], list[Param]] = {}
    for param in params:
        relative = param.name.removeprefix(prefix)
        match = _EXPERT.fullmatch(relative)
        if match:
            experts.setdefault((match[1], match[2], match[3]), []).append(param)
        else:
            named[relative] = param
    return Block(prefix, named, tuple(Experts(*k, tuple(v)) for k, v in experts.items()))


def _numbered(spelling: Spelling, numbers: Sequence[int]) -> list[Spelling]:
    if "{m}" not in spelling.stored:
        return [spelling]
    return [
        replace(
            spelling,
            stored=spelling.stored.format(m=m),
            parts=tuple(part.format(m=m) for part in spelling.parts),
        )
        for m in numbers
    ]
