"""The random draws of one step: dropout, noise on embeddings."""

import hashlib

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from llm_train.config import RunConfig
from llm_train.model.draws import SHARED_EXPERT_DRAWS


def seed_draws(config: RunConfig, step: int) -> None:
    """Start the generators of this rank anew for step number `step`.

    What a step drops follows from the seed, its number and the rank's place: a resume needs no
    state of generators, and evaluations disturb none. Tensor-parallel ranks draw the same where
    they hold the same, and apart (megatron-core's tracker) where each has heads or slices of its
    own; stages, and ranks with other tokens, draw apart. Ranks that cut experts with each other,
    across data-parallel ranks too, draw alike of the tokens that they gather.
    """
    train = config.train
    adapters = 0.0 if config.lora is None else config.lora.dropout
    drawn = (train.attention_dropout, train.hidden_dropout, config.sft.neftune_alpha, adapters)
    if not any(drawn):
        return
    stage = parallel_state.get_pipeline_model_parallel_rank()
    share = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    seed = _seed(train.seed, step, stage, share)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)
    cutting = dist.get_process_group_ranks(parallel_state.get_expert_tensor_parallel_group())
    tracker = get_cuda_rng_tracker()
    assert tracker is not None  # made with the process groups
    tracker.add(SHARED_EXPERT_DRAWS, _seed(train.seed, step, "experts", cutting[0]))


def _seed(*parts: object) -> int:
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")
