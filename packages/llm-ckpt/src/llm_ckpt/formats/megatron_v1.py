"""Megatron v1, the `torch` layout: one `model_optim_rng.pt` a rank.

`iter_0000001/mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt` holds `args`, `checkpoint_version` 3.0
(grouped QKV rows), `iteration` and `model`, or `model0 … modelN` with virtual pipeline chunks.
Layers are numbered from 0 in each chunk. Sizes, schedule, dialect and the layout of experts are
read from the files. The contract is tests/contracts/megatron_v1/SPEC.md.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llm_ckpt.arch import Arch
from llm_ckpt.blocks import Param
from llm_ckpt.errors import FormatError, first_few
from llm_ckpt.formats.dialects import EXPERT_LAYOUTS, Spelling, every_spelling
from llm_ckpt.formats.rank_files import (
    FINAL_NORMS,
    RankFile,
    holds_adapters,
    open_ranks,
    rank_path,
)
from llm_ckpt.formats.rank_state import (
    Block,
    Piece,
    Stored,
    blocks_of,
    expert_tensors,
    picked_boxes,
    piece_boxes_of,
    spellings_found,
    stored_tensor,
)
from llm_ckpt.formats.slab import Slab, Tile, check_length
from llm_ckpt.formats.tiled import Tiled, check_tiles
from llm_ckpt.formats.unpickle import Lazy
from llm_ckpt.layout import Box, Shape, moved, whole
from llm_ckpt.params import EMBEDDING, OUTPUT, expected_params
from llm_ckpt.placement import ChunkPlace, Grid, Rank, Schedule, chunk_places

_LOCAL_LAYER = re.compile(r"(decoder\.layers\.(\d+)\.|mtp\.layers\.\d+\.transformer_layer\.)(.+)")
_EXPERT_NAMES = {
    "sequential": re.compile(r".*experts\.local_experts\.(\d+)\.linear_fc2\.weight"),
    "te": re.compile(r".*experts\.linear_fc2\.weight(\d+)"),
    "grouped": re.compile(r".*experts\.weight2()"),
}
_VPP_DUALPIPEV = 2


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of a checkpoint while its tensors are matched with parameters."""

    arch: Arch
    grid: Grid
    layers: Mapping[tuple[ChunkPlace, int], Block]
    others: Mapping[str, Block]
    spellings: Mapping[str, Mapping[str, tuple[Spelling, ...]]]
    params: Mapping[str, Param]
    vocabulary: Mapping[tuple[int, int, str], Mapping[int, int]]


def read_v1(iteration: Path, arch: Arch, *, ignores_adapters: bool = False) -> Tiled:
    """Open every rank of an iteration folder; only pickles are read, no tensors.

    Low-rank factors beside the weights are left out when `ignores_adapters` says so, else refused.
    """
    ranks = open_ranks(iteration)
    if not ignores_adapters and any(holds_adapters(rank) for rank in ranks):
        raise FormatError(
            f"{iteration}: holds LoRA factors beside its weights; merge them with --lora and this "
            "folder, or take them out with llm-ckpt export-lora"
        )
    reading = reading_of(ranks, arch, where=str(iteration))
    return read_ranks(reading, ranks, tuple(reading.params.values()), where=str(iteration))


def read_ranks(
    reading: Reading, ranks: Sequence[RankFile], params: Sequence[Param], *, where: str
) -> Tiled:
    """The tiles of `params` in rank files, which hold tensors as those that were read do."""
    tiles: dict[str, dict[Box, Tile]] = {}
    dtypes: dict[str, torch.dtype] = {}
    unknown: dict[str, list[Tile]] = {}
    for file in ranks:
        rank, experts = _rank_of(file, reading.grid), dict[str, dict[str, Stored]]()
        for chunk in range(len(file.chunks)):
            for local, lazy in file.tensors(chunk):
                found = _stored(
                    reading, rank, ChunkPlace(file.pp, chunk), local, lazy, file, experts
                )
                if found is None:
                    unknown[local] = []
                    continue
                for name, tile in _tiles_of(reading, file, rank, found, lazy, chunk):
                    # other ranks hold copies of what none of them cuts
                    tiles.setdefault(name, {}).setdefault(tile.box, tile)
                    if dtypes.setdefault(name, lazy.storage.dtype) != lazy.storage.dtype:
                        at = f"{file.zip.path}: {local}"
                        raise FormatError(f"{at} has another dtype on other ranks")
    listed = {name: list(by_box.values()) for name, by_box in tiles.items()}
    return check_tiles(listed | unknown, dtypes, params, where=where)


def reading_of(ranks: Sequence[RankFile], arch: Arch, *, where: str) -> Reading:
    """What the files' names, shapes and options say of the layout."""
    grid = _grid(ranks, arch)
    _check_present(ranks, grid, where=where)
    params = expected_params(arch)
    blocks = blocks_of(params)
    layers = [block for block in blocks if block.layer is not None]
    rest = {n: p for block in blocks if not block.prefix for n, p in block.params.items()}
    if arch.tie_embeddings:
        rest[OUTPUT] = rest[EMBEDDING]  # the last stage's own copy
    others = {block.prefix: block for block in blocks if block.prefix.startswith("mtp.")}
    others[""] = Block("", rest, ())
    tables = every_spelling()
    slots = _layer_slots(ranks, arch.num_layers, where=where)
    return Reading(
        arch=arch,
        grid=grid,
        layers=dict(zip(slots, layers, strict=True)),
        others=others,
        spellings={b.prefix: spellings_found(b, tables) for b in (*layers, *others.values())},
        params={param.name: param for param in params},
        vocabulary=_vocabulary_rows(ranks, rest),
    )


def _grid(ranks: Sequence[RankFile], arch: Arch) -> Grid:
    """Parallel sizes, from the files' names and the experts' shapes."""
    tp, ep = (max(getattr(rank, axis) for rank in ranks) + 1 for axis in ("tp", "ep"))
    if arch.moe is None:
        return Grid(tp=tp, ep=ep)
    extends = bool(getattr(ranks[0].args, "moe_tp_extend_ep", False)) and tp > 1
    local, columns = _expert_size(ranks[0], arch)
    if local and local * ep * tp == arch.moe.experts and tp > 1:
        extends = True
    grid = Grid(tp=tp, ep=ep, tp_extends_ep=extends)
    grid.check_experts(arch.moe.experts)
    if extends or not columns:
        return grid
    total = arch.moe.ffn_hidden_size * (1 if local else arch.moe.experts // ep)
    if total % columns:
        raise FormatError(
            f"{ranks[0].zip.path}: experts have {columns} columns, want a divisor of {total}"
        )
    return Grid(tp=tp, ep=ep, etp=total // columns)


def _expert_size(rank: RankFile, arch: Arch) -> tuple[int, int]:
    """Experts in the file (0 when they are one tensor), and how many columns they have there."""
    found: dict[str, list[tuple[str, Lazy]]] = {"sequential": [], "te": [], "grouped": []}
    for chunk in range(len(rank.chunks)):
        for name, lazy in rank.tensors(chunk):
            for layout, pattern in _EXPERT_NAMES.items():
                if pattern.fullmatch(name):
                    found[layout].append((name, lazy))
    for layout in ("sequential", "te"):
        if found[layout]:
            pattern = _EXPERT_NAMES[layout]
            numbers = {m[1] for name, _ in found[layout] if (m := pattern.fullmatch(name))}
            return len(numbers), found[layout][0][1].shape[-1]
    if found["grouped"]:
        shape = found["grouped"][0][1].shape
        if len(shape) != 2 or shape[1] != arch.hidden_size:
            name = found["grouped"][0][0]
            want = f"[…, {arch.hidden_size}]"
            raise FormatError(f"{rank.zip.path}: {name} has shape {list(shape)}, want {want}")
        return 0, shape[0]
    return 0, 0


def _check_present(ranks: Sequence[RankFile], grid: Grid, *, where: str) -> None:
    stages = max(rank.pp for rank in ranks) + 1
    found = {(rank.pp, rank.tp, rank.ep) for rank in ranks}
    wanted = {(pp, rank.tp, rank.ep) for pp in range(stages) for rank in grid.ranks()}
    if absent := sorted(wanted - found):
        shape = {"is_pipelined": stages > 1, "has_experts": grid.ep > 1}
        paths = [rank_path(tp=tp, pp=pp, ep=ep, **shape) for pp, tp, ep in absent]
        raise FormatError(f"{where}: missing rank files {first_few(paths)}")
    if (extra := sorted(found - wanted)) and grid.expert_tensor > 1:
        pp, tp, ep = extra[0]
        sizes = f"tp({grid.tp}), ep({grid.ep}), etp({grid.expert_tensor})"
        raise FormatError(f"{where}: no rank has tp {tp}, pp {pp} and ep {ep} with {sizes}")


def _rank_of(file: RankFile, grid: Grid) -> Rank:
    for rank in grid.ranks():
        if (rank.tp, rank.ep) == (file.tp, file.ep):
            return rank
    return grid.rank(file.tp, file.ep, 0)


def _layer_slots(
    ranks: Sequence[RankFile], num_layers: int, *, where: str
) -> list[tuple[ChunkPlace, int]]:
    """The place and local number of each layer; noop layers leave gaps."""
    first = {rank.pp: rank for rank in reversed(ranks)}
    pp, vpp = len(first), len(ranks[0].chunks)
    for rank in ranks:
        if len(rank.chunks) != vpp:
            raise FormatError(f"{rank.zip.path}: {len(rank.chunks)} model chunks, want {vpp}")
    slots: list[tuple[ChunkPlace, int]] = []
    for place in chunk_places(pp, vpp, _schedule(first[0], pp, vpp)):
        names = [name for name, _ in first[place.stage].tensors(place.chunk)]
        found = {int(m[2]) for name in names if (m := _LOCAL_LAYER.fullmatch(name)) and m[2]}
        slots += [(place, local) for local in sorted(found)]
    if len(slots) != num_layers:
        text = ", ".join(f"{place.stage}/{place.chunk}: {local}" for place, local in slots[:8])
        raise FormatError(
            f"{where}: the files hold {len(slots)} layers (stage/chunk: layer {text} …), "
            f"want {num_layers}"
        )
    return slots


def _schedule(first: RankFile, pp: int, vpp: int) -> Schedule:
    """DualPipeV has the last layers, so the final norm, on the first stage."""
    if pp == 1 or vpp != _VPP_DUALPIPEV:
        return "interleaved"
    names = {name for name, _ in first.tensors(1)}
    return "dualpipev" if names & FINAL_NORMS else "interleaved"


def _vocabulary_rows(
    ranks: Sequence[RankFile], rest: Mapping[str, Param]
) -> dict[tuple[int, int, str], dict[int, int]]:
    """Rows that each tensor rank holds of a vocabulary tensor; they need not be equal.

    MindSpeed-LLM's second converter does not pad: `torch.chunk` leaves less to the last ranks.
    """
    found: dict[tuple[int, int, str], dict[int, int]] = {}
    for rank in ranks:
        for chunk in range(len(rank.chunks)):
            for name, lazy in rank.tensors(chunk):
                if name in rest and rest[name].cut.padded and lazy.shape:
                    found.setdefault((rank.pp, chunk, name), {})[rank.tp] = lazy.shape[0]
    return found


def _stored(
    reading: Reading,
    rank: Rank,
    place: ChunkPlace,
    local: str,
    lazy: Lazy,
    file: RankFile,
    experts: dict[str, dict[str, Stored]],
) -> Stored | None:
    """What a tensor of a file is; None when no parameter is spelled so."""
    ways = _candidates(reading, rank, place, local, experts)
    if not ways:
        return None
    for stored in ways:
        if stored.shape == lazy.shape or _is_vocabulary(reading, stored, lazy.shape):
            return stored
    wanted = " or ".join(str(list(stored.shape)) for stored in ways)
    param = reading.params[ways[0].pieces[0].param]
    raise FormatError(
        f"{file.zip.path}: {local} has shape {list(lazy.shape)}, want {wanted} "
        f"(rank {rank.tp} of tp {reading.grid.tp} of {list(param.shape)})"
    )


def piece_of(reading: Reading, file: RankFile, chunk: int, local: str) -> Piece | None:
    """The parameter, and the rank's piece of it, that a name of a file stands for alone."""
    rank = _rank_of(file, reading.grid)
    for stored in _candidates(reading, rank, ChunkPlace(file.pp, chunk), local, {}):
        if len(stored.pieces) == 1 and stored.pieces[0].rows is None:
            return stored.pieces[0]
    return None


def _candidates(
    reading: Reading,
    rank: Rank,
    place: ChunkPlace,
    local: str,
    experts: dict[str, dict[str, Stored]],
) -> list[Stored]:
    """Every way in which a name of a file may be meant."""
    match = _LOCAL_LAYER.fullmatch(local)
    prefix, relative = (match[1], match[3]) if match else ("", local)
    if match and match[2]:
        block = reading.layers.get((place, int(match[2])))
    else:
        block = reading.others.get(prefix)
    if block is None:
        return []
    if block.prefix not in experts:
        experts[block.prefix] = _expert_names(block, rank)
    if relative in experts[block.prefix]:
        return [experts[block.prefix][relative]]
    return list(_ways(reading, rank, block, relative))


def _ways(reading: Reading, rank: Rank, block: Block, relative: str) -> Iterator[Stored]:
    for spelling in reading.spellings[block.prefix].get(relative, ()):
        padded = -(-reading.arch.vocab_size // rank.tensor.size) * rank.tensor.size
        yield stored_tensor(spelling, "", block, rank, reading.arch, padded_vocab=padded)


def _expert_names(block: Block, rank: Rank) -> dict[str, Stored]:
    """What the file holds of a layer's experts, in all layouts, by name."""
    return {
        stored.name: stored
        for experts in block.experts
        for layout in EXPERT_LAYOUTS
        if layout != "grouped" or experts.kind == "weight"
        for stored in expert_tensors(experts, "", layout, rank)
    }


def _is_vocabulary(reading: Reading, stored: Stored, shape: Shape) -> bool:
    param = reading.params[stored.pieces[0].param]
    return param.cut.padded and shape[1:] == param.shape[1:] and len(shape) == len(param.shape)


def _tiles_of(
    reading: Reading, file: RankFile, rank: Rank, stored: Stored, lazy: Lazy, chunk: int
) -> Iterator[tuple[str, Tile]]:
    slab = file.zip.slab(lazy)
    check_length([slab])
    offset = 0
    for piece in stored.pieces:
        param = reading.params[piece.param]
        if param.cut.padded:
            rows = reading.vocabulary[file.pp, chunk, stored.name]
            before = sum(count for tp, count in rows.items() if tp < rank.tp)
            boxes = (moved(whole(lazy.shape), before),)
        else:
            boxes = picked_boxes(piece_boxes_of(param, piece.shard), piece.rows)
        for tile, size in _laid_out(slab, offset, boxes, param, stored.is_transposed):
            offset += 0 if stored.is_transposed else size
            if tile is not None:
                yield param.name, tile
        if stored.is_transposed:
            offset += sum(box.numel for box in boxes)


def _laid_out(
    slab: Slab, offset: int, boxes: Sequence[Box], param: Param, is_transposed: bool
) -> Iterator[tuple[Tile | None, int]]:
    """Tiles of boxes that lie end to end from element `offset`; None for vocabulary padding."""
    heights = sum(box.shape[0] for box in boxes)
    column = 0
    for box in boxes:
        if is_transposed:
            part = slab.elements(offset, (box.shape[1], heights))
            yield Tile(box, lambda part=part: part, column), box.numel
            column += box.shape[0]
            continue
        kept = box.overlap(whole(param.shape)) if param.cut.padded else box
        if kept is not None:
            part = slab.elements(offset, kept.shape)
            yield Tile(kept, lambda part=part: part), box.numel
        else:
            yield None, box.numel
        offset += box.numel
