"""A frozen base in NF4: the weights of every linear of its layers."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding

from llm_train.model.build import Model
from llm_train.model.lora.attach import targets
from llm_train.model.nf4 import quantize

_ENDS = "output_layer"


def quantize_base(chunks: Sequence[Model], *, is_double: bool) -> None:
    """Put NF4 in the place of each linear's weight; embeddings, output and norms stay.

    As bitsandbytes does with a model of transformers. Each rank quantises what it holds.
    """
    for chunk in chunks:
        for target in list(targets(chunk)):
            module: Any = target.module
            if isinstance(module, VocabParallelEmbedding) or target.name == _ENDS:
                continue
            if target.linear:
                for expert in module.local_experts:
                    _replace(expert.get_submodule(target.linear), is_double=is_double)
            else:
                _replace(module, is_double=is_double)


@torch.no_grad()
def _replace(linear: Any, *, is_double: bool) -> None:
    weight = linear.weight
    made = torch.nn.Parameter(quantize(weight, is_double=is_double), requires_grad=False)
    # How it lies on ranks, by which it is found in the whole.
    for name, value in vars(weight).items():
        setattr(made, name, value)
    linear.weight = made
