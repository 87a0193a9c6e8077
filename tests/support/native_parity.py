"""Tokens of the native engine beside those of transformers."""

import random

import torch

from llm_infer.sampling import Sampling
from native_decoder import engine_of, run


def prompts(count, *, longest):
    """Without token 0, which transformers would take for padding."""
    draw = random.Random(1)
    return [[draw.randrange(1, 250) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def theirs(model, prompt, **settings):
    """The new tokens of transformers' `generate`, greedy unless told otherwise."""
    settings = {"do_sample": False, "max_new_tokens": 24, **settings}
    whole = model.generate(torch.tensor([prompt]), pad_token_id=0, eos_token_id=None, **settings)
    return whole[0, len(prompt) :].tolist()


def assert_crowd_is_alone(decoder, model, *, longest):
    """Eight texts have transformers' tokens, alone and in a cache too small for all of them.

    Returns the requests, their tokens and the crowded engine.
    """
    requests = [(prompt, Sampling(max_new_tokens=24)) for prompt in prompts(8, longest=longest)]
    alone = [run(engine_of(decoder), [request])[0] for request in requests]
    assert alone[:3] == [theirs(model, prompt) for prompt, _ in requests[:3]]
    crowded = engine_of(decoder, cache_tokens=240, step_tokens=24, max_running=8)
    assert run(crowded, requests) == alone
    assert crowded.stats.num_preempted > 0
    return requests, alone, crowded
