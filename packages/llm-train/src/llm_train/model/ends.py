"""Both ends of a model: scaled and normed embeddings; biased, scaled and bounded logits.

megatron-core builds both ends itself; what an architecture has more is put on here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig

from llm_train.arch import Arch
from llm_train.model.norms import Norm


class Embedding(LanguageModelEmbedding):
    """Token (and learned position) vectors, times a factor, then normed if the model does."""

    def __init__(self, arch: Arch, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.factor = arch.scalars.embedding
        if arch.embedding_norm:
            self.norm = Norm(config, arch.hidden_size, arch.norm.eps)

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, tokentype_ids: Any = None
    ) -> torch.Tensor:
        """[B, T] ids → [T, B, hidden] (a slice of T under sequence parallel)."""
        hidden = super().forward(input_ids, position_ids, tokentype_ids)
        if self.factor != 1.0:
            hidden = hidden * self.factor
        return self.norm(hidden) if hasattr(self, "norm") else hidden


def finish_ends(chunk: GPTModel, arch: Arch, config: TransformerConfig) -> None:
    """Give the ends of a chunk what its architecture has more than megatron-core's."""
    if chunk.pre_process or chunk.mtp_process:
        _replace_embedding(chunk, arch, config)
    if chunk.post_process:
        _finish_output(chunk.output_layer, arch)
    if chunk.mtp_process and not chunk.pre_process and arch.tie_embeddings:
        # The embedding that prediction layers have on this stage is the output's weight as well.
        chunk.output_layer.register_parameter("weight", None)


def is_product_alone(layer: ColumnParallelLinear) -> bool:
    """Whether logits are inputs times its weight: no bias, adapter or hook has a part in them."""
    hooks = [*layer._forward_hooks, *layer._forward_pre_hooks]
    return layer.bias is None and not hooks and not list(layer.children())


def _replace_embedding(chunk: GPTModel, arch: Arch, config: TransformerConfig) -> None:
    if arch.scalars.embedding == 1.0 and not arch.embedding_norm:
        return
    rows = chunk.vocab_size
    marks = dict(vars(chunk.embedding.word_embeddings.weight))
    del chunk.embedding  # never two of them in memory
    chunk.embedding = Embedding(
        arch,
        config,
        vocab_size=rows,
        max_sequence_length=chunk.max_sequence_length,
        position_embedding_type=chunk.position_embedding_type,
        tp_group=chunk.pg_collection.tp,
    )
    # Another stage may share it: that is how gradients and their norm know.
    vars(chunk.embedding.word_embeddings.weight).update(marks)


def _finish_output(output_layer: ColumnParallelLinear, arch: Arch) -> None:
    scalars = arch.scalars
    if arch.output_bias:
        zeros = torch.zeros(
            output_layer.output_size_per_partition,
            dtype=output_layer.config.params_dtype,
            device=torch.cuda.current_device(),
        )
        bias = torch.nn.Parameter(zeros)
        bias.tensor_model_parallel, bias.partition_dim = True, 0  # pyright: ignore[reportAttributeAccessIssue]
        output_layer.bias = bias
    if arch.output_normalized:
        output_layer.register_forward_pre_hook(_normalize_rows, with_kwargs=True)
    if scalars.logits == 1.0 and scalars.logit_softcap is None:
        return

    def bound(_module: object, _args: object, out: tuple[torch.Tensor, Any]) -> tuple[Any, ...]:
        logits = out[0] if scalars.logits == 1.0 else out[0] * scalars.logits
        if scalars.logit_softcap is not None:
            logits = torch.tanh(logits / scalars.logit_softcap) * scalars.logit_softcap
        return (logits, *out[1:])

    output_layer.register_forward_hook(bound)


def _normalize_rows(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    weight = kwargs.get("weight")
    weight = module.weight if weight is None else weight
    return args, {**kwargs, "weight": F.normalize(weight, dim=1)}  # pyright: ignore[reportArgumentType]
