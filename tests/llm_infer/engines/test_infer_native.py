"""The native engine over a tiny Qwen3 with context 256; expected tokens are transformers'."""

import random
import resource
from pathlib import Path

import pytest
import torch

from ckpt_zoo import Case
from llm_infer.sampling import Sampling
from native_decoder import engine_of, open_decoder, run

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "vocab_size": 250,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Case("qwen3", SIZES).save(tmp_path_factory.mktemp("native") / "hf")


@pytest.fixture(scope="module")
def decoder(folder):
    return open_decoder(folder)


def prompts(count, seed=0, longest=90):
    draw = random.Random(seed)
    return [[draw.randrange(250) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def theirs(folder, prompt, **settings):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole = model.generate(torch.tensor([prompt]), pad_token_id=0, eos_token_id=None, **settings)
    return whole[0, len(prompt) :].tolist()


def test_events_tell_how_much_of_a_prompt_was_in_the_cache(decoder):
    engine, prompt = engine_of(decoder), prompts(1, longest=90)[0][:1] * 40
    for expected in (0, 32):
        # Of 40 tokens two blocks of 16 are full.
        engine.submit(prompt, Sampling(max_new_tokens=2))
        found = set()
        while engine.has_work:
            found |= {event.num_cached for event in engine.step()}
        assert found == {expected}


def test_greedy_tokens_are_the_same_alone_in_a_batch_and_when_preempted(decoder):
    requests = [(prompt, Sampling(max_new_tokens=40)) for prompt in prompts(12)]
    alone = [run(engine_of(decoder), [request])[0] for request in requests]
    assert run(engine_of(decoder), requests) == alone
    # Prompts in small parts, and blocks for about three of the twelve.
    crowded = engine_of(decoder, cache_tokens=320, step_tokens=24, max_running=12)
    assert run(crowded, requests) == alone
    assert crowded.stats.num_preempted > 0
    assert crowded.stats.cache_blocks_held == 0
    # What is in the cache by now changes nothing either.
    assert run(crowded, requests) == alone


def test_greedy_tokens_are_those_of_transformers(folder, decoder):
    (prompt,) = prompts(1, seed=3)
    expected = theirs(folder, prompt, do_sample=False, max_new_tokens=64)
    assert len(set(expected)) > 5
    assert run(engine_of(decoder), [(prompt, Sampling(max_new_tokens=64))]) == [expected]


def test_drawn_tokens_are_those_of_transformers_with_the_same_seed(folder, decoder):
    (prompt,) = prompts(1, seed=4, longest=20)
    settings = {"temperature": 1.4, "top_k": 40, "top_p": 0.9, "min_p": 0.01}
    settings["repetition_penalty"] = 1.2
    torch.manual_seed(11)
    expected = theirs(folder, prompt, do_sample=True, max_new_tokens=30, **settings)
    sampling = Sampling(max_new_tokens=30, seed=11, **settings)
    crowd = [(other, Sampling(temperature=1.0, seed=5)) for other in prompts(3, seed=9)]
    assert run(engine_of(decoder), [*crowd, (prompt, sampling)])[-1] == expected


def test_a_second_turn_computes_only_what_is_new(decoder):
    engine = engine_of(decoder)
    first = prompts(1, seed=5, longest=1)[0] * 100
    (answer,) = run(engine, [(first, Sampling(max_new_tokens=20))])
    second = [*first, *answer, 7, 8, 9]
    before = engine.stats
    shared = run(engine, [(second, Sampling(max_new_tokens=10))])
    # The last token of the answer was never computed: blocks of 16 up to 119 tokens.
    assert engine.stats.shared_tokens - before.shared_tokens == 112
    assert shared == run(engine_of(decoder), [(second, Sampling(max_new_tokens=10))])


def test_answers_of_one_prompt_share_it(decoder):
    engine = engine_of(decoder)
    prompt = prompts(1, seed=6, longest=1)[0] * 50
    requests = [(prompt, Sampling(temperature=1.0, seed=seed)) for seed in range(4)]
    answers = run(engine, requests)
    assert len({tuple(answer) for answer in answers}) == 4
    assert engine.stats.shared_tokens == 3 * 48


def test_a_text_that_left_nan_in_the_cache_does_not_reach_the_next(decoder):
    engine = engine_of(decoder, cache_tokens=64)
    request = (list(range(20)), Sampling(max_new_tokens=8))
    expected = run(engine, [request])
    for pool in engine._runner.pools:
        pool.keys.fill_(float("nan"))
        pool.values.fill_(float("nan"))
    engine._blocks.forget()
    assert run(engine, [request]) == expected


def test_a_cache_takes_memory_only_where_it_is_written(decoder):
    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident_bytes()
    engine = engine_of(decoder, cache_tokens=1 << 20)  # 2 layers of 2 * 64 numbers a token: 1 GiB
    run(engine, [([1, 2, 3], Sampling(max_new_tokens=4))])
    assert resident_bytes() - before < 200 << 20


def test_an_end_token_ends_and_is_not_given(decoder):
    request = (prompts(1, seed=3)[0], Sampling(max_new_tokens=30))
    (tokens,) = run(engine_of(decoder), [request])
    end = next(token for i, token in enumerate(tokens) if i > 3 and token not in tokens[:i])
    engine = engine_of(decoder, end_tokens=[end])
    assert run(engine, [request]) == [tokens[: tokens.index(end)]]
    ignoring = (request[0], Sampling(max_new_tokens=30, ignores_end=True))
    assert run(engine, [ignoring]) == [tokens]


def test_the_last_event_says_why(decoder):
    engine = engine_of(decoder, cache_tokens=48)
    engine.submit([1], Sampling(max_new_tokens=3))
    engine.submit([1] * 40, Sampling(max_new_tokens=100))
    ends = {}
    while engine.has_work:
        ends |= {event.request: event.end for event in engine.step() if event.end}
    assert ends == {0: "length", 1: "context"}


def test_a_stream_and_others_go_on_together_and_closing_it_gives_its_blocks_back(decoder):
    engine = engine_of(decoder)
    one, two = prompts(2, seed=8)
    (expected,) = run(engine_of(decoder), [(two, Sampling(max_new_tokens=12))])
    stream = engine.generate(one, Sampling(max_new_tokens=50))
    next(stream)
    assert list(engine.generate(two, Sampling(max_new_tokens=12))) == expected
    stream.close()
    assert not engine.has_work
    assert engine.stats.cache_blocks_held == 0


@pytest.mark.parametrize(
    ("prompt", "sampling", "said"),
    [
        ([], Sampling(), "the prompt is empty"),
        ([1] * 256, Sampling(), "256 tokens; the context of 256 leaves no room"),
        ([250], Sampling(), "token 250: want 0 <= token < 250"),
        ([-1], Sampling(), "token -1"),
        ([1], Sampling(logit_bias=((300, 1.0),)), "token 300"),
    ],
)
def test_a_bad_request_is_refused_and_the_engine_goes_on(decoder, prompt, sampling, said):
    engine = engine_of(decoder)
    with pytest.raises(ValueError, match=said):
        engine.submit(prompt, sampling)
    assert not engine.has_work
    assert len(run(engine, [([1], Sampling(max_new_tokens=2))])[0]) == 2
