"""Adapters put on the linears of a model chunk, which is frozen but for them."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)

from llm_train.config import LoraConfig
from llm_train.interfaces import Columns
from llm_train.model.build import Model
from llm_train.model.experts import Experts
from llm_train.model.feed_forward import FeedForward
from llm_train.model.linears import ReplicatedLinear
from llm_train.model.lora.adapter import Adapter, Cut, EmbeddingAdapter, ExpertsAdapter, Form, Place
from llm_train.model.lora.fused import fuse
from llm_train.model.lora.overlapped import overlap
from llm_train.model.names import EXPERTS, INDEXER, PREDICTION, global_name

AnyAdapter = Adapter | EmbeddingAdapter | ExpertsAdapter
CHILD = "lora"
_CUTS = {ColumnParallelLinear: Cut.OUTPUTS, RowParallelLinear: Cut.INPUTS}
_EXPERT_CUTS = {"linear_fc1": Cut.OUTPUTS, "linear_fc2": Cut.INPUTS}


class TargetError(ValueError):
    """Target modules that a model does not have."""


@dataclass(frozen=True, slots=True)
class Target:
    """A linear (or one linear of all experts of a layer) by its name in the whole model."""

    name: str
    module: torch.nn.Module
    linear: str = ""


def attach_adapters(
    chunks: Sequence[Model],
    lora: LoraConfig,
    *,
    dtype: torch.dtype,
    columns: Mapping[str, Columns] = MappingProxyType({}),
) -> None:
    """Freeze the chunks and adapt what `lora.target_modules` names; every rank calls it.

    Weights need have no memory yet, and then adapters have none: `fill_adapters` gives them their
    first values. `columns` are those of linears, by name, whose adapters are not one of
    `lora.rank` and `lora.alpha`. Raises TargetError naming what matches nothing on any rank, and
    what there is.
    """
    form = Form(
        rank=lora.rank,
        scaling=lora.scaling,
        dropout=lora.dropout,
        is_dora=lora.dora,
        dtype=dtype,
    )
    names = [target.name for chunk in chunks for target in targets(chunk)]
    refuse_unknown("lora.target_modules", lora.target_modules, names, kind="linears")
    for chunk in chunks:
        chunk.requires_grad_(False)
        chunk.is_adapted = True
        for target in list(targets(chunk)):
            if any(matches(target.name, pattern) for pattern in lora.target_modules):
                own = _with_columns(form, columns.get(target.name))
                _refuse_mixed(own, target, lora)
                _adapt(target, own, chunk, is_overlapped=lora.overlap)
        if lora.fused_mlp:
            _fuse_feed_forwards(chunk)


def let_frozen_embeddings_need_gradients(chunks: Sequence[Model]) -> None:
    """For chunks that begin with frozen embeddings, whatever froze them."""
    for chunk in chunks:
        if chunk.pre_process and not any(p.requires_grad for p in chunk.embedding.parameters()):
            chunk.embedding.register_forward_hook(_differentiable)


def targets(chunk: Model) -> Iterator[Target]:
    """Every linear of the main model that can be adapted."""
    for local, module in chunk.named_modules():
        if local.startswith(PREDICTION) or EXPERTS in f"{local}." or INDEXER in f".{local}":
            continue
        if isinstance(module, Experts):
            name = global_name(chunk, f"{local}.weight").removesuffix(".weight")
            for linear in _EXPERT_CUTS:
                yield Target(f"{name}.{linear}", module, linear)
        elif isinstance(
            module,
            ColumnParallelLinear | RowParallelLinear | ReplicatedLinear | VocabParallelEmbedding,
        ):
            if local == "output_layer" and chunk.share_embeddings_and_output_weights:
                continue
            yield Target(global_name(chunk, f"{local}.weight").removesuffix(".weight"), module)


def refuse_unknown(option: str, patterns: Sequence[str], mine: Iterable[str], *, kind: str) -> None:
    """Raise TargetError for one that matches no name on any rank; every rank calls it."""
    everywhere: list[set[str]] = [set()] * dist.get_world_size()
    dist.all_gather_object(everywhere, set(mine))
    names = sorted(set[str]().union(*everywhere))
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            there = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise TargetError(
                f"{option}: {pattern!r} matches none of the model's {len(names)} {kind}; there "
                f"are {there}, in names like {names[len(names) // 2]}"
            )


def matches(name: str, pattern: str) -> bool:
    """The last part of the name, or a glob over all of it."""
    return name.rpartition(".")[2] == pattern or fnmatch.fnmatchcase(name, pattern)


def has_adapters(chunk: Model) -> bool:
    """It is frozen, and adapters are what trains, whether or not this chunk holds any."""
    return chunk.is_adapted


def has_adapter(linear: torch.nn.Module) -> bool:
    """A linear or an embedding has one of its own."""
    return hasattr(linear, CHILD)


def _with_columns(form: Form, columns: Columns | None) -> Form:
    """With a number where all columns are multiplied by one."""
    if columns is None:
        return form
    each = tuple(scaling for count, scaling in columns for _ in range(count))
    return replace(form, rank=len(each), scaling=each[0] if len(set(each)) == 1 else each)


def _refuse_mixed(form: Form, target: Target, lora: LoraConfig) -> None:
    """Where a linear and its adapter are one function, B · A is multiplied by one number."""
    if isinstance(form.scaling, tuple) and (lora.overlap or lora.fused_mlp):
        raise TargetError(
            f"lora.load: modules of {target.name} have scalings "
            f"{', '.join(map(str, sorted(set(form.scaling))))}, which is not built with "
            "lora.overlap or lora.fused_mlp; want both false"
        )


def _adapt(target: Target, form: Form, chunk: Model, *, is_overlapped: bool) -> None:
    module: Any = target.module
    if target.linear:
        weights = [expert.get_submodule(target.linear).weight for expert in module.local_experts]
        if form.is_dora:
            raise TargetError(f"lora.dora: not built for experts ({target.name})")
        place = Place(
            cut=_EXPERT_CUTS[target.linear], group=module.tp_group, is_sequence_parallel=False
        )
        adapter: AnyAdapter = ExpertsAdapter(weights, form, place)
        module.adapters[target.linear] = adapter
    elif isinstance(module, VocabParallelEmbedding):
        group = cast("dist.ProcessGroup", module.tp_group)
        place = Place(cut=Cut.OUTPUTS, group=group, is_sequence_parallel=False)
        adapter = EmbeddingAdapter(module, form, place, vocab_size=chunk.real_vocab_size)
        module.add_module(CHILD, adapter)
        module.register_forward_hook(_add_rows)
    else:
        adapter = Adapter(module.weight, form, _place(module))
        module.add_module(CHILD, adapter)
        if is_overlapped and not isinstance(module, ReplicatedLinear):
            overlap(module, adapter)
        else:
            # Before hooks that scale or bound what the linear gives.
            module.register_forward_hook(_add, prepend=True)
    adapter.name = target.name  # pyright: ignore[reportArgumentType]  # a plain attribute


def _fuse_feed_forwards(chunk: Model) -> None:
    """Each with adapters on both of its linears; those without any stay."""
    for local, module in chunk.named_modules():
        if not isinstance(module, FeedForward):
            continue
        found = [getattr(linear, CHILD, None) for linear in (module.linear_fc1, module.linear_fc2)]
        if all(isinstance(one, Adapter) for one in found):
            fuse(module, *cast("list[Adapter]", found))
        elif any(found):
            name = global_name(chunk, f"{local}.weight").removesuffix(".weight")
            raise TargetError(
                f"lora.fused_mlp: {name} has an adapter on one of its linears; want both, "
                "linear_fc1 and linear_fc2, in lora.target_modules, or neither"
            )


def _place(module: Any) -> Place:
    if isinstance(module, ReplicatedLinear):
        is_parallel = bool(getattr(module.weight, "sequence_parallel", False))
        group = cast("dist.ProcessGroup", parallel_state.get_tensor_model_parallel_group())
        return Place(cut=Cut.NONE, group=group, is_sequence_parallel=is_parallel)
    cut = next(cut for kind, cut in _CUTS.items() if isinstance(module, kind))
    is_parallel = bool(module.sequence_parallel) and module.tp_group.size() > 1
    return Place(cut=cut, group=module.tp_group, is_sequence_parallel=is_parallel)


def _add(module: torch.nn.Module, args: tuple[Any, ...], out: Any) -> Any:
    """A forward hook: the linear's output, which may come with a bias that it has not added."""
    adapter = cast("Adapter", module.lora)
    weight = cast("torch.Tensor", module.weight)
    is_pair = isinstance(out, tuple)
    result, *rest = out if is_pair else (out,)
    is_added = not is_pair or rest[0] is None
    bias = cast("torch.Tensor | None", getattr(module, "bias", None)) if is_added else None
    result = adapter.adapted(result, args[0], weight, bias)
    return (result, *rest) if is_pair else result


def _add_rows(module: torch.nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
    adapter = cast("EmbeddingAdapter", module.lora)
    return adapter.adapted(out, args[0], cast("torch.Tensor", module.weight))


def _differentiable(
    _module: torch.nn.Module, _args: object, hidden: torch.Tensor
) -> torch.Tensor | None:
    """Let frozen embeddings need a gradient.

    Whole layers that are computed again in backward are one function to autograd: if none of its
    inputs needs a gradient its output needs none, and the adapters inside never learn.
    """
    if hidden.requires_grad or not torch.is_grad_enabled():
        return None
    return hidden.detach().requires_grad_()
