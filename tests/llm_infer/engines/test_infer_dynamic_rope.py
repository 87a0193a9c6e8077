"""Dynamic rope scaling beyond the trained length; expected texts are those of transformers.

Its rope remembers the longest text that it met, so each text gets a model that met none.
"""

import random

import pytest
import torch

from ckpt_zoo import CASES, Case
from llm_ckpt.source import open_source
from llm_infer.arch import parse
from llm_infer.engines.native import Limits
from llm_infer.engines.reading import Reader
from llm_infer.model.rope import context_of
from llm_infer.sampling import Beams, Sampling
from llm_infer.scoring import Reading
from native_decoder import engine_of, logits_of, open_decoder, run

BY_ID = {case.id: case for case in CASES}
TRAINED, FACTOR = 32, 4


@pytest.fixture(scope="module", params=["llama", "glm"])
def opened(request, tmp_path_factory):
    """A decoder trained for 32 tokens, to be scaled to 128, and its folder; GLM's is interleaved
    and of half the channels.
    """
    settings = {**BY_ID[request.param].config, "max_position_embeddings": TRAINED}
    rope = {**settings.get("rope_parameters", {}), "rope_theta": 100.0}
    settings["rope_parameters"] = {**rope, "rope_type": "dynamic", "factor": float(FACTOR)}
    folder = Case(request.param, settings).save(tmp_path_factory.mktemp("dynamic") / "hf")
    return open_decoder(folder, context=TRAINED * FACTOR), folder


def model_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def theirs(folder, prompt, **settings):
    settings = {"do_sample": False, "max_new_tokens": 40, **settings}
    whole = model_of(folder).generate(
        torch.tensor([prompt]), pad_token_id=0, eos_token_id=None, **settings
    )
    return whole[0, len(prompt) :].tolist()


def prompt_of(length):
    draw = random.Random(3)
    return [draw.randrange(1, 250) for _ in range(length)]


# One that ends within the trained length and grows beyond it, one that begins at it, a longer one.
PROMPTS = (prompt_of(12), prompt_of(33), prompt_of(80))


def test_texts_beyond_the_trained_length_are_those_of_transformers(opened):
    decoder, folder = opened
    alone = [run(engine_of(decoder), [(one, Sampling(max_new_tokens=40))])[0] for one in PROMPTS]
    assert alone == [theirs(folder, one) for one in PROMPTS]
    requests = [(one, Sampling(max_new_tokens=40)) for one in PROMPTS]
    crowded = engine_of(decoder, cache_tokens=208, step_tokens=12, max_running=3)
    assert run(crowded, requests) == alone
    assert crowded.stats.num_preempted > 0


def test_logits_of_a_long_prompt_in_whatever_steps(opened):
    decoder, folder = opened
    tokens = torch.tensor([prompt_of(100)])
    found = logits_of(decoder, tokens)
    with torch.no_grad():
        difference = (found - model_of(folder)(tokens).logits).abs().max()
    assert difference <= 1e-4
    assert torch.equal(logits_of(decoder, tokens, cuts=(7, 31, 33, 70)), found)


def test_only_prompts_that_turn_alike_share_what_is_cached(opened):
    decoder, folder = opened
    engine, sampling = engine_of(decoder), Sampling(max_new_tokens=4)
    shared = []
    for length in (30, 20, 90, 70, 90, 31):
        before = engine.stats.shared_tokens
        assert run(engine, [(prompt_of(length), sampling)]) == [
            theirs(folder, prompt_of(length), max_new_tokens=4)
        ]
        shared.append(engine.stats.shared_tokens - before)
    assert shared == [0, 16, 0, 0, 80, 16]


def test_beams_grow_beyond_the_trained_length(opened):
    decoder, folder = opened
    sampling = Sampling(max_new_tokens=30, beams=Beams(num_beams=3))
    found = list(engine_of(decoder).generate(PROMPTS[0], sampling))
    assert found == theirs(folder, PROMPTS[0], num_beams=3, max_new_tokens=30)


def test_a_long_text_is_scored_as_one_forward_does(opened):
    decoder, folder = opened
    *tokens, last = prompt_of(90)
    reader = Reader(decoder, limits=Limits(cache_tokens=512, block_tokens=16, step_tokens=64))
    (score,) = reader.score([Reading(tokens=tuple(tokens), targets=(last,))])
    with torch.no_grad():
        logits_V = model_of(folder)(torch.tensor([tokens])).logits[0, -1]
    assert score.logprob == pytest.approx(logits_V.log_softmax(-1)[last].item(), abs=1e-4)


def test_the_context_is_the_trained_one_by_the_factor(opened):
    _, folder = opened
    with open_source(folder) as source:
        arch = parse(source.arch, where="here")
    assert context_of(arch) == TRAINED * FACTOR
    plain = arch.model_copy(update={"position": arch.position.model_copy(update={"scaling": None})})
    assert context_of(plain) == TRAINED
