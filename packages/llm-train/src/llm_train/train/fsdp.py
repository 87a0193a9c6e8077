"""Weights, gradients and optimizer state cut over the data-parallel ranks, by torch's FSDP2.

Every layer is gathered for its forward and again for its backward, and its gradients are summed
into each rank's rows; experts are cut over the ranks that hold the same experts. The rows stay in
fp32, as the masters that the optimizer updates; what is gathered has the type of the computation.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from llm_train.model.build import Model
from llm_train.model.experts import Experts
from llm_train.model.lora.attach import has_adapter
from llm_train.model.shards import is_shared_out, learning, local
from llm_train.model.unfilled import like


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """Where the rows lie, in which type they are gathered, whether a layer stays gathered."""

    device: torch.device
    dtype: torch.dtype
    reshard_after_forward: bool


def shard_weights(
    chunk: Model, sharding: Sharding, *, but: Collection[torch.nn.Parameter] = ()
) -> None:
    """Cut a chunk's parameters, which get memory here if they have none; only rows are kept.

    All but some, which stay as they are.
    """
    marks = {name: dict(vars(one)) for name, one in chunk.named_parameters()}
    meshes = _Meshes(sharding.device.type)
    options = {
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=sharding.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
        "reshard_after_forward": sharding.reshard_after_forward,
        "ignored_params": set(but),
    }
    units = list(_units(chunk))
    # Innermost first: a module takes the parameters that no module inside it has taken.
    for unit in reversed(units):
        fully_shard(unit, mesh=meshes.of(unit), **options)
    # The root is used first and last: it stays gathered in between.
    fully_shard(chunk, mesh=meshes.dense, **{**options, "reshard_after_forward": None})
    _sum_gradients(chunk)
    _set_prefetching(chunk, units)
    left = {id(one) for one in but}
    chunk._apply(
        lambda one: (
            torch.empty_like(one, device=sharding.device)
            if one.is_meta and id(one) not in left
            else one
        )
    )
    for name, one in chunk.named_parameters():
        vars(one).update(marks[name])


class ShardedModel(MegatronModule):
    """A chunk with the interface of megatron-core's DistributedDataParallel.

    Its parameters are this rank's rows, as ordinary tensors: `main_param` of the chunk's own that
    are cut, DTensors. Both have the rows' gradient as `main_grad` when it is complete.
    """

    def __init__(self, config: TransformerConfig, chunk: Model) -> None:
        super().__init__(config=config)
        self.module = chunk
        self.ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=False)
        self._cut = _cut_parameters(chunk)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The chunk's own."""
        return self.module(*inputs, **kwargs)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """This rank's rows."""
        del recurse, remove_duplicate
        for name, one in self._cut.items():
            yield f"{prefix}{name}", one.main_param  # pyright: ignore[reportAttributeAccessIssue]

    def zero_grad_buffer(self) -> None:
        """Forget the gradients of the step before."""
        for one in self._cut.values():
            one.grad = None
            _set_gradient(one, None)

    def finish_grad_sync(self, force_all_reduce: bool | None = False) -> None:
        """The gradients are summed already; show them to megatron-core as ordinary tensors."""
        del force_all_reduce
        for one in self._cut.values():
            rows = one.main_param  # pyright: ignore[reportAttributeAccessIssue]
            assert rows.data_ptr() == local(one).data_ptr(), "torch has moved the rows"
            # megatron-core, which flattens gradients, loses the shape of nothing
            if not (one.requires_grad and len(rows)):
                continue
            gradient = torch.zeros_like(rows) if one.grad is None else local(one.grad)
            if (learns := learning(one)) is not None:
                gradient.mul_(learns)
            _set_gradient(one, gradient)

    def scale_gradients(self, scaling_factor: torch.Tensor) -> None:
        """Multiply all gradients."""
        for rows in self.parameters():
            if rows.requires_grad and len(rows):
                rows.main_grad.mul_(scaling_factor)  # pyright: ignore[reportAttributeAccessIssue]


def round_rows(chunks: Sequence[ShardedModel], dtype: torch.dtype) -> None:
    """Begin with weights that `dtype` has, as training does whose masters are made from these."""
    with torch.no_grad():
        for rows in (rows for chunk in chunks for rows in chunk.parameters()):
            rows.copy_(rows.to(dtype))


def is_sharded(chunks: Sequence[torch.nn.Module]) -> bool:
    """The chunks' parameters are cut over data-parallel ranks."""
    return isinstance(chunks[0], FSDPModule)


def gather_nothing(chunk: torch.nn.Module) -> None:
    """Let go of weights that a forward without a backward has left gathered."""
    for module in _sharded_modules(chunk):
        module.reshard()


class _Meshes:
    """The ranks over which the rows of dense layers and of experts are cut."""

    def __init__(self, device_type: str) -> None:
        def mesh(group: ProcessGroup | None) -> DeviceMesh:
            assert group is not None
            return DeviceMesh.from_group(group, device_type)

        self.dense = mesh(parallel_state.get_data_parallel_group(with_context_parallel=True))
        self._experts = mesh(parallel_state.get_expert_data_parallel_group())

    def of(self, unit: torch.nn.Module) -> DeviceMesh:
        return self._experts if isinstance(unit, Experts) else self.dense


def _units(chunk: Model) -> Iterator[torch.nn.Module]:
    """What is gathered at a time, in the order of a forward; the root takes the rest."""
    has_mtp = getattr(chunk, "mtp_process", False)
    # An embedding or output layer that is used in several places stays in the root.
    is_alone = not (has_mtp or chunk.share_embeddings_and_output_weights)
    if chunk.pre_process and is_alone:
        yield chunk.embedding
    layers = [*chunk.decoder.layers, *(chunk.mtp.layers if has_mtp else ())]
    for layer in layers:
        yield layer
        yield from (module for module in layer.modules() if isinstance(module, Experts))
    if chunk.post_process and is_alone:
        yield chunk.output_layer


def _set_prefetching(chunk: Model, units: Sequence[torch.nn.Module]) -> None:
    """Gather what backward needs next while it computes.

    Torch's own guess follows the order of the forwards, which recomputation and pipelines disturb.
    """
    order = cast("list[FSDPModule]", _backward_order(units))
    for unit, following in pairwise([*order, *order[-1:]]):
        unit.set_modules_to_backward_prefetch([following])
    root = cast("FSDPModule", chunk)
    root.set_modules_to_backward_prefetch(order[:1] or [root])
    for unit in units:
        if isinstance(unit, LanguageModelEmbedding) and not _multiplies(unit):
            # Looking rows up needs no weight in backward.
            cast("FSDPModule", unit).set_unshard_in_backward(False)


def _multiplies(embedding: LanguageModelEmbedding) -> bool:
    """It does more than looking rows up: it has a norm, or an adapter."""
    return hasattr(embedding, "norm") or has_adapter(embedding.word_embeddings)


def _backward_order(units: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
    """The last unit first, but a layer before the experts inside it."""
    order: list[torch.nn.Module] = []
    inside: list[torch.nn.Module] = []
    for unit in reversed(units):
        if isinstance(unit, Experts):
            inside.insert(0, unit)
        else:
            order += [unit, *inside]
            inside = []
    return order


def _sum_gradients(chunk: torch.nn.Module) -> None:
    """Sum over ranks; the loss is a sum over tokens, divided by their number at the end."""
    for module in _sharded_modules(chunk):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def _cut_parameters(chunk: Model) -> Mapping[str, torch.nn.Parameter]:
    """The DTensors by name, each given its rows as `main_param`."""
    for module in _sharded_modules(chunk):
        # At its first gathering a module moves its rows to where they stay.
        module.unshard()
        module.reshard()
    cut = {name: one for name, one in chunk.named_parameters() if is_shared_out(one)}
    for one in cut.values():
        one.main_param = like(one, local(one))  # pyright: ignore[reportAttributeAccessIssue]
    return cut


def _set_gradient(parameter: torch.nn.Parameter, rows: torch.Tensor | None) -> None:
    parameter.main_grad = rows  # pyright: ignore[reportAttributeAccessIssue]
    parameter.main_param.main_grad = rows  # pyright: ignore[reportAttributeAccessIssue]


def _sharded_modules(chunk: torch.nn.Module) -> Iterator[FSDPModule]:
    return (module for module in chunk.modules() if isinstance(module, FSDPModule))
