"""Models with a state instead of keys on the native engine; expected tokens are transformers'."""

import pytest
import torch

from ckpt_zoo import CASES, Case
from llm_infer.sampling import Beams, Sampling
from native_decoder import engine_of, open_decoder, run
from native_parity import assert_crowd_is_alone, prompts, theirs

BY_ID = {case.id: case for case in CASES}


@pytest.fixture(scope="module", params=["qwen3_next-mixed", "bamba", "mamba2"])
def opened(request, tmp_path_factory):
    """A decoder with room for 256 tokens, and transformers' model of the same weights."""
    from transformers import AutoModelForCausalLM

    case = BY_ID[request.param]
    settings = {**case.config}
    if "max_position_embeddings" in settings:
        settings["max_position_embeddings"] = 256
    folder = Case(case.family, settings).save(tmp_path_factory.mktemp("recurrent") / "hf")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return open_decoder(folder), model


def test_tokens_are_those_of_transformers_alone_in_a_crowd_and_when_preempted(opened):
    decoder, model = opened
    requests, alone, crowded = assert_crowd_is_alone(decoder, model, longest=70)
    assert run(crowded, requests) == alone


def test_a_shared_beginning_brings_its_state(opened):
    decoder, model = opened
    engine = engine_of(decoder)
    first = prompts(1, longest=1)[0] * 40 + [5, 6, 7, 8]
    (answer,) = run(engine, [(first, Sampling(max_new_tokens=10))])
    second = [*first, *answer, 7, 8, 9]
    before = engine.stats.shared_tokens
    assert run(engine, [(second, Sampling(max_new_tokens=24))]) == [theirs(model, second)]
    assert engine.stats.shared_tokens - before == 48


def test_beams_copy_the_state_of_the_block_they_part_in(opened):
    decoder, model = opened
    (prompt,) = prompts(1, longest=70)
    sampling = Sampling(max_new_tokens=20, beams=Beams(num_beams=4))
    found = list(engine_of(decoder).generate(prompt, sampling))
    assert found == theirs(model, prompt, num_beams=4, max_new_tokens=20)
