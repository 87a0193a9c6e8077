"""Models whose indexers choose keys on the native engine; expected tokens are transformers'."""

import random

import pytest
import torch

from ckpt_zoo import CASES, Case
from llm_infer.sampling import Beams, Sampling
from native_decoder import engine_of, open_decoder, run

BY_ID = {case.id: case for case in CASES}


@pytest.fixture(scope="module", params=["deepseek_v32", "glm_moe_dsa-borrowing"])
def opened(request, tmp_path_factory):
    """A decoder that chooses 24 keys, more than a block of 16, and transformers' model."""
    from transformers import AutoModelForCausalLM

    case = BY_ID[request.param]
    settings = {**case.config, "max_position_embeddings": 256, "index_topk": 24}
    folder = Case(case.family, settings).save(tmp_path_factory.mktemp("chosen") / "hf")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return open_decoder(folder), model


def prompts(count, longest=90):
    """Without token 0, which transformers would take for padding."""
    draw = random.Random(1)
    return [[draw.randrange(1, 250) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def theirs(model, prompt, **settings):
    settings = {"do_sample": False, "max_new_tokens": 24, **settings}
    whole = model.generate(torch.tensor([prompt]), pad_token_id=0, eos_token_id=None, **settings)
    return whole[0, len(prompt) :].tolist()


def test_tokens_are_those_of_transformers_alone_in_a_crowd_and_when_preempted(opened):
    decoder, model = opened
    requests = [(prompt, Sampling(max_new_tokens=24)) for prompt in prompts(8)]
    alone = [run(engine_of(decoder), [request])[0] for request in requests]
    assert alone[:3] == [theirs(model, prompt) for prompt, _ in requests[:3]]
    crowded = engine_of(decoder, cache_tokens=240, step_tokens=24, max_running=8)
    assert run(crowded, requests) == alone
    assert crowded.stats.num_preempted > 0
    # Blocks that are found again hold the keys that the indexer chooses by.
    roomy = engine_of(decoder)
    assert [run(roomy, requests), run(roomy, requests)] == [alone, alone]
    assert roomy.stats.shared_tokens > 100


def test_beams_copy_the_keys_that_an_indexer_chooses_by(opened):
    decoder, model = opened
    prompt = prompts(3)[2]
    sampling = Sampling(max_new_tokens=20, beams=Beams(num_beams=4))
    found = list(engine_of(decoder).generate(prompt, sampling))
    assert found == theirs(model, prompt, num_beams=4, max_new_tokens=20)
