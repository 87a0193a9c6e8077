"""Noise on embeddings in training: NEFTune (https://arxiv.org/abs/2310.05914)."""

import math

import torch

from llm_train.model.build import Model
from llm_train.model.draws import own_draws


def add_noise(chunk: Model, alpha: float) -> None:
    """Add to every embedded token, in training, uniform noise within alpha / √(tokens · hidden).

    `tokens` are those of the whole padded sequence, as in the paper's own code: slices of it on
    tensor- and context-parallel ranks have noise of their own.
    """
    if not chunk.pre_process:
        return
    config = chunk.config
    is_cut = bool(config.sequence_parallel)
    ranks = (config.tensor_model_parallel_size if is_cut else 1) * config.context_parallel_size

    def noisy(module: torch.nn.Module, _args: object, hidden: torch.Tensor) -> torch.Tensor | None:
        if not module.training:
            return None
        tokens, _, width = hidden.shape  # [T, B, hidden]
        bound = alpha / math.sqrt(tokens * ranks * width)
        with own_draws(is_on=is_cut):
            noise = torch.empty_like(hidden).uniform_(-bound, bound)
        return hidden + noise

    chunk.embedding.register_forward_hook(noisy)
