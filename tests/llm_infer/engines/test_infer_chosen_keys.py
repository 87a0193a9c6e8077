"""Models whose indexers choose keys on the native engine; expected tokens are transformers'."""

import pytest
import torch

from ckpt_zoo import CASES, Case
from llm_infer.sampling import Beams, Sampling
from native_decoder import engine_of, open_decoder, run
from native_parity import assert_crowd_is_alone, prompts, theirs

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


def test_tokens_are_those_of_transformers_alone_in_a_crowd_and_when_preempted(opened):
    decoder, model = opened
    requests, alone, _ = assert_crowd_is_alone(decoder, model, longest=90)
    # Blocks that are found again hold the keys that the indexer chooses by.
    roomy = engine_of(decoder)
    assert [run(roomy, requests), run(roomy, requests)] == [alone, alone]
    assert roomy.stats.shared_tokens > 100


def test_beams_copy_the_keys_that_an_indexer_chooses_by(opened):
    decoder, model = opened
    prompt = prompts(3, longest=90)[2]
    sampling = Sampling(max_new_tokens=20, beams=Beams(num_beams=4))
    found = list(engine_of(decoder).generate(prompt, sampling))
    assert found == theirs(model, prompt, num_beams=4, max_new_tokens=20)
