"""Megatron v1, the `torch` layout: one `model_optim_rng.pt` a rank.

`iter_0000001/mp_rank_TT[_PPP]/model_optim_rng.pt` holds `args`, `checkpoint_version` 3.0 (grouped
QKV rows), `iteration` and `model`, or `model0 … modelN` with virtual pipeline chunks. Layers are
numbered from 0 in each chunk. The contract is tests/contracts/megatron_v1/SPEC.md.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from llm_ckpt.arch import Arch
from llm_ckpt.blocks import Param
from llm_ckpt.errors import FormatError, LayoutError, first_few
from llm_ckpt.formats import names
from llm_ckpt.formats.slab import Tile, check_length
from llm_ckpt.formats.tiled import Tiled, check_tiles, clip_rows
from llm_ckpt.formats.torch_zip import TorchZip, read_torch_zip
from llm_ckpt.formats.unpickle import Lazy
from llm_ckpt.layout import Shape, Shard, piece_boxes, piece_shape
from llm_ckpt.params import EMBEDDING, OUTPUT, expected_params
from llm_ckpt.placement import Slot, slots_of

RANK_FILE = "model_optim_rng.pt"
CHECKPOINT_VERSION = 3.0
_RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3}))?(_\d{3})?")


@dataclass(frozen=True, slots=True)
class RankFile:
    """One rank's file, opened: its state dicts, one a virtual chunk."""

    tp: int
    pp: int
    zip: TorchZip
    chunks: tuple[Mapping[str, Any], ...]


def rank_path(*, tp: int, pp: int, is_pipelined: bool) -> str:
    """Path of a rank's file below the iteration folder, as Megatron-LM names it."""
    return f"mp_rank_{tp:02d}" + (f"_{pp:03d}" if is_pipelined else "") + f"/{RANK_FILE}"


def read_v1(iteration: Path, arch: Arch) -> Tiled:
    """Open every rank of an iteration folder; only pickles are read, no tensors."""
    ranks = _open_ranks(iteration)
    tp, pp = (max(rank[axis] for rank in ranks) + 1 for axis in (0, 1))
    vpp = len(ranks[0, 0].chunks)
    layers = _layers_by_slot(ranks, pp, vpp, where=str(iteration))
    params = expected_params(arch)
    by_name = {param.name: param for param in params}
    tiles: dict[str, list[Tile]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for rank in ranks.values():
        for chunk, state in enumerate(rank.chunks):
            for local, lazy in _tensors(state):
                name = _global_name(local, rank.pp, chunk, layers)
                if name == OUTPUT and arch.tie_embeddings:
                    continue  # the last stage's own copy of the embedding
                found = _tiles_of(rank, local, lazy, by_name.get(name), tp=tp)
                tiles.setdefault(name, []).extend(found)
                if dtypes.setdefault(name, lazy.storage.dtype) != lazy.storage.dtype:
                    raise FormatError(f"{rank.zip.path}: {local} has another dtype on other ranks")
    return check_tiles(tiles, dtypes, params, where=str(iteration))


def model_args(
    arch: Arch, *, tp: int, pp: int, vpp: int, padded_vocab_size: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Options of Megatron-LM that describe the model and its layout, by their names there."""
    attention, mlp, position = arch.attention, arch.mlp, arch.position
    is_rope = position.kind == "rope"
    facts: dict[str, Any] = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": vpp if vpp > 1 else None,
        "expert_model_parallel_size": 1,
        "num_layers": arch.num_layers,
        "hidden_size": arch.hidden_size,
        "max_position_embeddings": arch.max_position_embeddings,
        "position_embedding_type": "rope" if is_rope else position.kind,
        "untie_embeddings_and_output_weights": not arch.tie_embeddings,
        "normalization": "RMSNorm" if arch.norm.kind == "rms" else "LayerNorm",
        "norm_epsilon": arch.norm.eps,
        "apply_layernorm_1p": arch.norm.zero_centered,
        "vocab_size": arch.vocab_size,
        "padded_vocab_size": padded_vocab_size,
        "num_experts": None,
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "transformer_impl": "local",
        "iteration": 1,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
    }
    if position.kind == "rope":
        facts |= {"rotary_base": position.base, "rotary_percent": position.fraction}
        if position.scaling is not None and position.scaling.kind == "llama3":
            facts |= {"use_rope_scaling": True, "rope_scaling_factor": position.scaling.factor}
    if attention is not None:
        facts |= {
            "num_attention_heads": attention.heads,
            "group_query_attention": attention.query_groups != attention.heads,
            "num_query_groups": attention.query_groups,
            "kv_channels": attention.head_dim,
            "add_qkv_bias": attention.qkv_bias,
            "qk_layernorm": attention.qk_norm != "none",
        }
    if mlp is not None:
        facts |= {
            "ffn_hidden_size": mlp.ffn_hidden_size,
            "swiglu": mlp.gated and mlp.activation == "silu",
            "add_bias_linear": mlp.bias,
        }
    return facts


def rank_entries(
    arch: Arch, slots: Sequence[Slot], *, pp: int, vpp: int, stage: int
) -> tuple[tuple[tuple[str, str], ...], ...]:
    """For each virtual chunk of a stage: (name in the file, canonical name), in model order."""
    chunks: list[list[tuple[str, str]]] = [[] for _ in range(vpp)]
    for param in expected_params(arch):
        split = names.split_layer(param.name)
        if split is not None:
            slot = slots[split[0]]
            local = names.join_layer(slot.local, split[1])
        else:
            is_first = param.name == EMBEDDING
            slot = Slot(0, 0, 0) if is_first else Slot(pp - 1, vpp - 1, 0)
            local = param.name
        if slot.stage == stage:
            chunks[slot.chunk].append((local, param.name))
    if arch.tie_embeddings and pp > 1 and stage == pp - 1:
        chunks[-1].append((OUTPUT, EMBEDDING))  # the last stage keeps its own copy
    return tuple(tuple(chunk) for chunk in chunks)


def _open_ranks(iteration: Path) -> dict[tuple[int, int], RankFile]:
    ranks: dict[tuple[int, int], RankFile] = {}
    for folder in sorted(iteration.glob("mp_rank_*")):
        match = _RANK.fullmatch(folder.name)
        if match is None:
            raise FormatError(f"{folder}: want a name like mp_rank_00 or mp_rank_00_000")
        if match[3]:
            raise LayoutError(f"{folder}: expert-parallel ranks are not read by this version")
        tp, pp = int(match[1]), int(match[2] or 0)
        if not (folder / RANK_FILE).is_file():
            raise FormatError(f"{folder / RANK_FILE}: file is missing")
        ranks[tp, pp] = _open_rank(folder / RANK_FILE, tp, pp)
    if not ranks:
        raise FormatError(f"{iteration}: no mp_rank_* folders")
    sizes = [max(rank[axis] for rank in ranks) + 1 for axis in (0, 1)]
    wanted = {(t, p) for t in range(sizes[0]) for p in range(sizes[1])}
    if absent := sorted(wanted - ranks.keys()):
        paths = [rank_path(tp=t, pp=p, is_pipelined=sizes[1] > 1) for t, p in absent]
        raise FormatError(f"{iteration}: missing rank files {first_few(paths)}")
    return ranks


def _open_rank(path: Path, tp: int, pp: int) -> RankFile:
    opened = read_torch_zip(path)
    if not isinstance(opened.value, dict):
        raise FormatError(f"{path}: holds {type(opened.value).__name__}, want a dict with 'model'")
    value = cast("dict[str, Any]", opened.value)
    version = value.get("checkpoint_version", 0)
    if version != CHECKPOINT_VERSION:
        raise FormatError(
            f"{path}: checkpoint_version {version}, want {CHECKPOINT_VERSION} "
            "(older ones order QKV rows differently)"
        )
    keys = ["model"] if "model" in value else []
    while not value.get("model") and f"model{len(keys)}" in value:
        keys.append(f"model{len(keys)}")
    if not keys:
        raise FormatError(f"{path}: no 'model' or 'model0' among {first_few(sorted(value))}")
    return RankFile(tp, pp, opened, tuple(value[key] for key in keys))


def _tensors(state: Mapping[str, Any]) -> Iterable[tuple[str, Lazy]]:
    for name, value in state.items():
        if isinstance(value, Lazy) and "_extra_state" not in name:
            yield name, value


def _layers_by_slot(
    ranks: Mapping[tuple[int, int], RankFile], pp: int, vpp: int, *, where: str
) -> dict[Slot, int]:
    sizes: list[int] = []
    for chunk in range(pp * vpp):
        rank = ranks[0, chunk % pp]
        if len(rank.chunks) != vpp:
            raise FormatError(f"{rank.zip.path}: {len(rank.chunks)} model chunks, want {vpp}")
        splits = (names.split_layer(name) for name, _ in _tensors(rank.chunks[chunk // pp]))
        found = {split[0] for split in splits if split}
        if found != set(range(len(found))):
            raise FormatError(f"{where}: {rank.zip.path}: layers {sorted(found)} have gaps")
        sizes.append(len(found))
    return {slot: layer for layer, slot in enumerate(slots_of(sizes, pp))}


def _global_name(local: str, pp: int, chunk: int, layers: Mapping[Slot, int]) -> str:
    name = names.to_canonical(local)
    split = names.split_layer(name)
    if split is None:
        return name
    layer = layers.get(Slot(pp, chunk, split[0]))
    return name if layer is None else names.join_layer(layer, split[1])


def _tiles_of(
    rank: RankFile, local: str, lazy: Lazy, param: Param | None, *, tp: int
) -> list[Tile]:
    if param is None or (param.cut.axis is None and rank.tp > 0):
        return []
    where = f"{rank.zip.path}: {local}"
    full = _stored_shape(param, lazy.shape, tp)
    boxes = piece_boxes(full, param.cut, Shard(rank.tp, tp), where=where)
    if lazy.shape != piece_shape(boxes):
        raise FormatError(
            f"{where} has shape {list(lazy.shape)}, want {list(piece_shape(boxes))} "
            f"(rank {rank.tp} of tp {tp} of {list(param.shape)})"
        )
    slab, offset, tiles = rank.zip.slab(lazy), 0, list[Tile]()
    check_length([slab])
    for box in boxes:
        height = box.shape[0]
        tile = clip_rows(slab.rows(offset, offset + height), box, param.shape)
        tiles += [tile] if tile else []
        offset += height
    return tiles


def _stored_shape(param: Param, piece: Shape, tp: int) -> Shape:
    """The full shape on disk: vocabulary tensors carry their padding."""
    if param.cut.padded and piece and piece[0] * tp >= param.shape[0]:
        return (piece[0] * tp, *param.shape[1:])
    return param.shape
