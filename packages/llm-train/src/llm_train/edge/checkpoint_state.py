"""What a checkpoint holds of a run's state, described for megatron-core to write and to read."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer

from llm_train.edge import checkpoint_shards
from llm_train.model.build import Model
from llm_train.model.lora import pieces as lora
from llm_train.model.lora.attach import has_adapters
from llm_train.model.lora.tensors import adapter_tensors
from llm_train.train.fsdp import is_sharded
from llm_train.train.optimizer import (
    SHARDING_METADATA,
    kept_rates,
    match_common_state,
    prepare_state,
    unshare_steps,
)

# Layers keep their own keys, so that models whose layers differ need no second form.
CONTENT = {**SHARDING_METADATA, "non_homogeneous_layers": True}


def described(
    chunks: Sequence[Model], optimizer: MegatronOptimizer, *, is_loading: bool
) -> dict[str, Any]:
    """Model and optimizer, each tensor with its place in the whole; both forms hold the same."""
    metadata = _metadata()
    if is_sharded(chunks):
        return checkpoint_shards.described(
            _keyed(chunks), optimizer, metadata, is_loading=is_loading
        )
    prepare_state(optimizer)
    state = {key: _model_state(chunk, metadata) for key, chunk in _keyed(chunks).items()}
    # The description of the optimizer is built from the model's, which saving takes apart.
    options = {"is_loading": True} if is_loading else {}
    # A description to load by begins with a load of the optimizer's own state.
    with kept_rates(optimizer):
        optimizer_state = optimizer.sharded_state_dict(dict(state), metadata=metadata, **options)
    return {**state, "optimizer": optimizer_state}


def fill(chunks: Sequence[Model], optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """The inverse: take what was read in the places of `described`."""
    if is_sharded(chunks):
        checkpoint_shards.fill(_keyed(chunks), optimizer, loaded)
        return
    for key, chunk in _keyed(chunks).items():
        if has_adapters(chunk):
            _fill_adapters(chunk, loaded.get(key, {}))
        else:
            chunk.load_state_dict(loaded.get(key, {}))
    with kept_rates(optimizer):
        optimizer.load_state_dict(match_common_state(optimizer, loaded["optimizer"]))
    unshare_steps(optimizer)


def _model_state(chunk: Model, metadata: dict[str, Any]) -> dict[str, Any]:
    """The weights; of a model with adapters these alone, for the base stays where it came from."""
    if has_adapters(chunk):
        return {held.name: lora.described(held) for held in adapter_tensors(chunk)}
    return chunk.sharded_state_dict(metadata=metadata)


@torch.no_grad()
def _fill_adapters(chunk: Model, loaded: dict[str, Any]) -> None:
    """Give a chunk's adapters what was read in the places of their description."""
    for held in adapter_tensors(chunk):
        held.tensor.copy_(loaded[held.name])


def _keyed(chunks: Sequence[Model]) -> dict[str, Model]:
    """Chunks under the names that megatron-core gives them; no key of a tensor has them."""
    if len(chunks) == 1:
        return {"model": chunks[0]}
    return {f"model{index}": chunk for index, chunk in enumerate(chunks)}


def _metadata() -> dict[str, Any]:
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return {**CONTENT, "dp_cp_group": group}
