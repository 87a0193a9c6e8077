"""Parameters of a model chunk under their global names, with the shard each holds."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core import parallel_state

from llm_train.interfaces import Shard
from llm_train.model.build import Model

LAYERS = "decoder.layers."
PREDICTION = "mtp.layers."
EXPERTS = ".experts.local_experts."
ADAPTERS = (".lora.", ".experts.adapters.")
INDEXER = ".core_attention.indexer."


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTensor:
    """A parameter (or kept buffer) of this rank; `name` counts layers and experts globally."""

    name: str
    tensor: torch.Tensor
    shard: Shard


def named_tensors(chunk: Model) -> Iterator[NamedTensor]:
    """Everything a checkpoint of this chunk must fill."""
    tensors: dict[str, torch.Tensor] = dict(chunk.named_parameters())
    tensors.update((n, b) for n, b in chunk.named_buffers() if n.endswith(".expert_bias"))
    for local, tensor in tensors.items():
        yield NamedTensor(name=global_name(chunk, local), tensor=tensor, shard=_shard(local))


def base_tensors(chunk: Model) -> Iterator[NamedTensor]:
    """Those that are there without low-rank adapters."""
    return (named for named in named_tensors(chunk) if not any(at in named.name for at in ADAPTERS))


def learning_indexer_weights(chunk: Model) -> list[str]:
    """Names of the weights of sparse-attention indexers that are not frozen."""
    return [
        named.name
        for named in named_tensors(chunk)
        if INDEXER in named.name and named.tensor.requires_grad
    ]


def global_name(chunk: Model, local: str) -> str:
    """The name in the whole model of a parameter's name in a chunk."""
    if local == "output_layer.weight" and chunk.share_embeddings_and_output_weights:
        return "embedding.word_embeddings.weight"  # the last stage's copy of the tied weight
    if local.startswith(PREDICTION):  # all on the last stage
        head, middle, rest = local.partition(".transformer_layer.")
        return head + middle + _global_expert(chunk, rest)
    if not local.startswith(LAYERS):
        return local
    index, _, rest = local.removeprefix(LAYERS).partition(".")
    layer = int(chunk.decoder.layers[int(index)].layer_number) - 1  # pyright: ignore[reportArgumentType]  # a Module's attribute
    return f"{LAYERS}{layer}.{_global_expert(chunk, rest)}"


def _global_expert(chunk: Model, rest: str) -> str:
    head, marker, numbered = rest.partition(EXPERTS)
    if not marker:
        return rest
    index, _, tail = numbered.partition(".")
    ep = chunk.config.expert_model_parallel_size
    assert chunk.config.num_moe_experts is not None
    per_rank = chunk.config.num_moe_experts // ep
    expert = parallel_state.get_expert_model_parallel_rank() * per_rank + int(index)
    return f"{head}{marker}{expert}.{tail}"


def _shard(local: str) -> Shard:
    if EXPERTS in local:
        group = parallel_state.get_expert_tensor_parallel_group()
    else:
        group = parallel_state.get_tensor_model_parallel_group()
    assert group is not None
    return group.rank(), group.size()
