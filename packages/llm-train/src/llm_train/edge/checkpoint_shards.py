"""The state of a sharded run in a checkpoint: the same keys and tensors, each rank with its rows.

megatron-core describes where a tensor-parallel rank's parameter lies in the whole one, in pieces
where it does not lie there at one place (gate and up, heads of several kinds). Of each piece this
rank has some rows: a smaller piece at a place of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer

from llm_train.model.build import Model
from llm_train.model.lora import pieces as lora
from llm_train.model.lora.attach import has_adapters
from llm_train.model.lora.tensors import adapter_tensors
from llm_train.model.shards import local, rows
from llm_train.model.unfilled import like
from llm_train.train.fsdp import gather_nothing
from llm_train.train.optimizer import SHARDING_METADATA, inner_optimizers, make_moments, saved_step

_MOMENTS = ("exp_avg", "exp_avg_sq")


def described(
    chunks: Mapping[str, Model],
    optimizer: MegatronOptimizer,
    metadata: Mapping[str, Any],
    *,
    is_loading: bool,
) -> dict[str, Any]:
    """Weights in the type of the computation, fp32 masters and moments, Adam's step.

    To load, masters and moments alone: they are the weights, except of frozen parameters. Of a
    model with adapters these alone, for the base stays where it came from.
    """
    for inner in inner_optimizers(optimizer):
        make_moments(inner)
    state: dict[str, Any] = {}
    masters: dict[str, Any] = {}
    for key, chunk in chunks.items():
        if has_adapters(chunk):
            state[key], found = _adapters(chunk, optimizer)
            masters |= {f"{key}.{name}": one for name, one in found.items()}
            continue
        state[key], cut = _entries(chunk, metadata)
        dtype = chunk.config.pipeline_dtype
        for name, (parameter, entry) in cut.items():
            if parameter.requires_grad:
                masters[f"{key}.{name}"] = {
                    kind: _pieces(entry, rows(parameter), data, prefix=f"optimizer.state.{kind}.")
                    for kind, data in _values(optimizer, parameter).items()
                }
            if not (is_loading and parameter.requires_grad):
                weights = local(parameter).to(dtype)
                state[key][name] = _pieces(entry, rows(parameter), weights)
    kind = SHARDING_METADATA["distrib_optim_sharding_type"]
    kept = {"param_state": masters, "param_state_sharding_type": kind}
    return {**state, "optimizer": {**kept, **({} if is_loading else _hyperparameters(optimizer))}}


@torch.no_grad()
def fill(
    chunks: Mapping[str, Model], optimizer: MegatronOptimizer, loaded: Mapping[str, Any]
) -> None:
    """Take masters, moments and buffers from where `described` had them read to."""
    masters, step = loaded["optimizer"].get("param_state", {}), saved_step(loaded["optimizer"])
    for key, chunk in chunks.items():
        if has_adapters(chunk):
            _fill_adapters(chunk, optimizer, masters, key)
            continue
        for name, buffer in chunk.named_buffers():
            if name in (found := loaded.get(key, {})):
                buffer.copy_(found[name])
        for name, parameter in chunk.named_parameters():
            if not parameter.requires_grad:
                _join(loaded.get(key, {}).get(name, ()), local(parameter))
                continue
            for kind, target in _values(optimizer, parameter).items():
                _join(masters.get(f"{key}.{name}", {}).get(kind, ()), target)
    for inner in inner_optimizers(optimizer):
        for state in inner.state.values():
            state["step"] = torch.tensor(float(step))


def _adapters(chunk: Model, optimizer: MegatronOptimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Their weights in the type of the computation, and their masters and moments."""
    weights: dict[str, Any] = {}
    masters: dict[str, Any] = {}
    for held in adapter_tensors(chunk):
        weights[held.name] = lora.sharded(held, held.tensor.to(chunk.config.pipeline_dtype))
        masters[held.name] = {
            kind: lora.sharded(held, data, prefix=f"optimizer.state.{kind}.")
            for kind, data in _values(optimizer, held.parameter).items()
        }
    return weights, masters


def _fill_adapters(
    chunk: Model, optimizer: MegatronOptimizer, masters: Mapping[str, Any], key: str
) -> None:
    for held in adapter_tensors(chunk):
        found = masters.get(f"{key}.{held.name}", {})
        for kind, target in _values(optimizer, held.parameter).items():
            for piece, part in zip(held.pieces, found.get(kind, ()), strict=True):
                target[piece.index] = part


def _join(pieces: Sequence[torch.Tensor], target: torch.Tensor) -> None:
    """Fill this rank's rows; a rank that has none has no pieces."""
    if len(target):
        target.copy_(torch.cat([piece.view(-1) for piece in pieces]).view_as(target))


def _entries(
    chunk: Model, metadata: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, tuple[torch.nn.Parameter, Any]]]:
    """What megatron-core says of buffers, and of each parameter as if it were whole."""
    gather_nothing(chunk)
    names = dict(chunk.named_parameters())
    with _whole_parameters(chunk) as wholes:
        found = chunk.sharded_state_dict(metadata=dict(metadata))
    by_whole = {id(wholes[name]): name for name in names}
    others, cut = dict[str, Any](), dict[str, tuple[torch.nn.Parameter, Any]]()
    for key, entry in found.items():
        name = by_whole.pop(id(entry.data), None)
        if name is None:
            others[key] = entry
        else:
            cut[name] = (names[name], entry)
    assert not by_whole, f"{', '.join(by_whole.values())}: not in the description of the model"
    return others, cut


@contextmanager
def _whole_parameters(chunk: Model) -> Iterator[Mapping[str, torch.nn.Parameter]]:
    """In the place of every parameter one of its whole shape that has no memory."""
    there = [
        (module, name, parameter)
        for module in chunk.modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    try:
        for module, name, parameter in there:
            setattr(module, name, like(parameter, torch.empty(parameter.shape, device="meta")))
        yield dict(chunk.named_parameters())
    finally:
        for module, name, parameter in there:
            setattr(module, name, parameter)


def _values(
    optimizer: MegatronOptimizer, parameter: torch.nn.Parameter
) -> Mapping[str, torch.Tensor]:
    """This rank's rows of a master and of its moments, as they are updated."""
    master: torch.Tensor = parameter.main_param  # pyright: ignore[reportAttributeAccessIssue]
    for inner in inner_optimizers(optimizer):
        if master in inner.state:
            moments = inner.state[master]
            return {"param": master.detach(), **{kind: moments[kind] for kind in _MOMENTS}}
    raise AssertionError("a parameter without an optimizer")


def _hyperparameters(optimizer: MegatronOptimizer) -> dict[str, Any]:
    """As the distributed optimizer writes them: param groups with the step in each."""
    inner = next(iter(inner_optimizers(optimizer)))
    steps = [float(state["step"]) for state in inner.state.values()]
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        | {"step": steps[0] if steps else 0.0}
        for group in inner.param_groups
    ]
    return {"optimizer": {"param_groups": groups}}


def _pieces(
    entry: ShardedTensor | ShardedTensorFactory,
    kept: slice,
    data: torch.Tensor,
    *,
    prefix: str = "",
) -> list[ShardedTensor]:
    """`data`, the rows `kept` of a parameter, in pieces of the whole tensors it is saved in."""
    whole = entry.data
    assert whole is not None
    built = entry.build() if isinstance(entry, ShardedTensorFactory) else entry
    found: list[ShardedTensor] = []
    for piece in [built] if isinstance(built, ShardedTensor) else nested_values(built):
        first, (count, *_) = _first_row(piece, whole), piece.local_shape
        start, stop = max(first, kept.start), min(first + count, kept.stop)
        if start < stop:
            mine = data[start - kept.start : stop - kept.start]
            found.append(_part(piece, mine, skipped=start - first, prefix=prefix))
    return found


def _first_row(piece: ShardedTensor, whole: torch.Tensor) -> int:
    """Where in a parameter a piece of it begins; pieces are views of it, of whole rows."""
    assert piece.data is not None
    width = whole[0].numel()
    row, begun = divmod(int(piece.data.storage_offset()), width)
    is_rows = (
        piece.data.untyped_storage()._cdata == whole.untyped_storage()._cdata
        and piece.data.shape[1:] == whole.shape[1:]
        and piece.data.is_contiguous()
        and begun == 0
    )
    assert is_rows, f"{piece.key}: not rows of its parameter"
    return row


def _part(piece: ShardedTensor, data: torch.Tensor, *, skipped: int, prefix: str) -> ShardedTensor:
    """Some rows of a piece; axes that it has only in the whole become its own."""
    axis = piece.prepend_axis_num
    offset = list(piece.global_offset)
    offset[axis] += skipped
    shaped = data.view((1,) * axis + tuple(data.shape))
    return replace(
        piece,
        key=f"{prefix}{piece.key}",
        data=shaped,
        dtype=data.dtype,
        local_shape=tuple(shaped.shape),
        global_offset=tuple(offset),
        # Rows are shared out unevenly, and pieces end where they do: no grid.
        axis_fragmentations=None,
        prepend_axis_num=0,
        # The last number counts copies on data-parallel ranks, and there are none.
        replica_id=(*piece.replica_id[:-1], 0),  # pyright: ignore[reportIndexIssue]  # (pp, tp, dp)
    )
