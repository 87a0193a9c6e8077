"""A frozen base in NF4: the weights of every linear of its layers, each made as it is read."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding

from llm_train.model.build import Model
from llm_train.model.fill import cut_places
from llm_train.model.lora.attach import targets
from llm_train.model.lora.tensors import keep_digested
from llm_train.model.names import base_tensors
from llm_train.model.nf4 import Nf4Error, Nf4Tensor, quantize
from llm_train.model.shards import put
from llm_train.model.unfilled import like

_ENDS = "output_layer"


class QuantizedBase:
    """Chunks built without memory, whose linears get theirs in NF4 when they are filled.

    As bitsandbytes does with a model of transformers: embeddings, output and norms stay. Each rank
    quantises what it holds, one weight at a time, so that no more than one is ever there whole.
    Whoever makes it gives all but `weights` their memory.
    """

    def __init__(self, chunks: Sequence[Model], *, is_double: bool, device: torch.device) -> None:
        self._is_double, self._device = is_double, device
        # By the weight that a linear was built with.
        self._waiting = {
            id(one.weight): one for chunk in chunks for one in quantized_linears(chunk)
        }
        self._names = {id(one.tensor): one.name for chunk in chunks for one in base_tensors(chunk)}
        self.weights: list[torch.nn.Parameter] = [one.weight for one in self._waiting.values()]

    @torch.no_grad()
    def put(self, tensor: torch.Tensor, whole: torch.Tensor) -> None:
        """Fill a parameter with a tensor of its shape, or the linear whose weight it stands for.

        Raises Nf4Error that names a weight which has no form in NF4.
        """
        linear = self._waiting.pop(id(tensor), None)
        if linear is None:
            put(tensor, whole)
            return
        weight = whole.to(self._device, tensor.dtype)
        try:
            quantized = quantize(weight, is_double=self._is_double)
        except Nf4Error as error:
            raise Nf4Error(f"lora.quantize: {self._names[id(tensor)]}: {error}") from None
        made = like(linear.weight, quantized)
        keep_digested(made, weight)
        linear.weight = made.requires_grad_(False)


@dataclass(frozen=True, slots=True)
class Quantized:
    """The part of a weight that is in NF4 by itself, with scales of its own.

    `runs` are where its entries along `axis` lie in the whole weight, first to behind the last.
    """

    name: str
    axis: int
    runs: tuple[tuple[int, int], ...]

    def places(self) -> torch.Tensor:
        """The same one by one, in the order of the part."""
        return torch.cat([torch.arange(first, stop) for first, stop in self.runs])


def quantized_parts(chunk: Model) -> Iterator[Quantized]:
    """What this rank has in NF4, by names in the whole model."""
    for one in base_tensors(chunk):
        if isinstance(one.tensor.data, Nf4Tensor):
            axis = max(getattr(one.tensor, "partition_dim", 0), 0)
            places = cut_places(one) if one.shard[1] > 1 else range(one.tensor.shape[axis])
            yield Quantized(one.name, axis, _runs(places))


@torch.no_grad()
def restored(
    weight: torch.Tensor, parts: Collection[Quantized], dtype: torch.dtype, *, is_double: bool
) -> torch.Tensor:
    """What ranks that compute in `dtype` have of a whole weight, put together, in `dtype`."""
    made = weight.to(dtype, copy=True)
    for part in parts:
        places = part.places()
        own = made.index_select(part.axis, places)
        made.index_copy_(part.axis, places, quantize(own, is_double=is_double).restored())
    return made


def _runs(places: Sequence[int]) -> tuple[tuple[int, int], ...]:
    starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1] + 1]
    ends = [*starts[1:], len(places)]
    return tuple((places[i], places[j - 1] + 1) for i, j in zip(starts, ends, strict=True))


def quantized_linears(chunk: Model) -> Iterator[Any]:
    """Those whose weights are, or are to be, in NF4."""
    for target in targets(chunk):
        module: Any = target.module
        if isinstance(module, VocabParallelEmbedding) or target.name == _ENDS:
            continue
        if target.linear:
            yield from (expert.get_submodule(target.linear) for expert in module.local_experts)
        else:
            yield module
