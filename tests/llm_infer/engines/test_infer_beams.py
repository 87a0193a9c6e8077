"""Beam search of the native engine; expected tokens are those of transformers' `generate`."""

import pytest
import torch

from ckpt_zoo import Case
from llm_infer.beam import BeamSearch
from llm_infer.engines.native import Limits, NativeEngine
from llm_infer.errors import InferError
from llm_infer.sampling import Beams, Sampling
from native_decoder import engine_of, open_decoder, run

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 96,
    "vocab_size": 60,
    # Wide enough that texts differ and end tokens come among the likeliest.
    "initializer_range": 0.2,
}
PROMPT = [3, 17, 42, 5, 9, 28, 51, 7, 33, 12, 4, 40, 21, 2, 14, 8, 31, 19, 55]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The native decoder and transformers' model of three sets of random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(
        Case("qwen3", SIZES).save(tmp_path_factory.mktemp("beams") / "hf")
    )
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("beams") / f"seed{seed}"
        AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        made.append((open_decoder(folder), theirs))
    return made


def expected(model, prompt, *, end_tokens=(), **settings):
    settings = {"do_sample": False, "max_new_tokens": 28, **settings}
    ends = list(end_tokens) or None
    whole = model.generate(torch.tensor([prompt]), pad_token_id=0, eos_token_id=ends, **settings)[
        0, len(prompt) :
    ].tolist()
    return whole[: next((at for at, token in enumerate(whole) if token in end_tokens), None)]


def found(decoder, prompt, beams, *, end_tokens=(), **settings):
    engine = engine_of(decoder, end_tokens=end_tokens)
    sampling = Sampling(**{"max_new_tokens": 28, **settings}, beams=beams)
    answer = list(engine.generate(prompt, sampling))
    assert engine.stats.cache_blocks_held == 0
    return answer


def greedy(model):
    return expected(model, PROMPT, max_new_tokens=16)


@pytest.mark.parametrize(("num_beams", "length"), [(2, 1), (4, 16), (7, 19)])
def test_the_text_is_that_of_transformers(models, num_beams, length):
    for decoder, model in models:
        theirs = expected(model, PROMPT[:length], num_beams=num_beams)
        assert found(decoder, PROMPT[:length], Beams(num_beams=num_beams)) == theirs
        assert len(theirs) == 28


@pytest.mark.parametrize("early_stopping", ["false", "true", "never"])
def test_texts_that_end_are_weighed_as_transformers_does(models, early_stopping):
    theirs_of = {"false": False, "true": True, "never": "never"}
    lengths = set()
    for (decoder, model), length_penalty in zip(models, [-1.0, 1.0, 2.5], strict=True):
        # Tokens that beams meet, at several lengths.
        ends = sorted({greedy(model)[6], greedy(model)[15]})
        beams = Beams(num_beams=4, early_stopping=early_stopping, length_penalty=length_penalty)
        theirs = expected(
            model,
            PROMPT,
            num_beams=4,
            end_tokens=ends,
            early_stopping=theirs_of[early_stopping],
            length_penalty=length_penalty,
        )
        assert found(decoder, PROMPT, beams, end_tokens=ends) == theirs
        lengths.add(len(theirs))
    assert len(lengths) > 1


def test_each_kind_of_early_stopping_finds_the_text_it_finds_in_transformers(models):
    # A language of pairs of tokens in which the three kinds find three texts.
    draw = torch.Generator().manual_seed(12)
    logits_VV = torch.full((60, 60), -30.0)
    logits_VV[:12, :12] = torch.randn(12, 12, generator=draw) * 3

    def by_last_token(tokens, _scores):
        return logits_VV[tokens[:, -1]].log_softmax(-1)

    texts = []
    for ours, theirs in {"false": False, "true": True, "never": "never"}.items():
        beams = Beams(num_beams=3, early_stopping=ours, length_penalty=2.0)
        search = BeamSearch(
            [0],
            Sampling(beams=beams),
            end_tokens=[1],
            max_new_tokens=20,
            generator=torch.Generator(),
        )
        search.push(logits_VV[:1])
        while not search.is_done:
            search.push(logits_VV[[answer[-1] for answer in search.answers]])
        settings = {"num_beams": 3, "early_stopping": theirs, "length_penalty": 2.0}
        settings |= {"end_tokens": [1], "max_new_tokens": 20, "logits_processor": [by_last_token]}
        best = [one.token for one in search.found[0].tokens]
        assert best == expected(models[0][1], [0], **settings)
        texts.append(tuple(best))
    assert len(set(texts)) == 3


def test_drawn_beams_are_those_of_transformers_with_the_same_seed(models):
    settings = {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.005}
    settings["repetition_penalty"] = 1.2
    answers = set()
    for seed, (decoder, model) in enumerate(models):
        ends = [greedy(model)[8]]
        torch.manual_seed(seed)
        theirs = expected(model, PROMPT, end_tokens=ends, do_sample=True, num_beams=3, **settings)
        beams = Beams(num_beams=3)
        assert found(decoder, PROMPT, beams, end_tokens=ends, seed=seed, **settings) == theirs
        answers |= {tuple(theirs), tuple(expected(model, PROMPT, end_tokens=ends, num_beams=3))}
    assert len(answers) > 3


def test_a_cut_to_one_token_leaves_beams_enough(models):
    decoder, model = models[0]
    torch.manual_seed(5)
    theirs = expected(model, PROMPT, do_sample=True, num_beams=3, top_k=1, top_p=0.01)
    settings = {"temperature": 1.0, "top_k": 1, "top_p": 0.01, "seed": 5}
    assert found(decoder, PROMPT, Beams(num_beams=3), **settings) == theirs


def test_it_goes_up_to_the_context_and_beside_other_requests(models):
    decoder, model = models[1]
    theirs = expected(model, PROMPT, num_beams=3, max_new_tokens=96 - len(PROMPT))
    engine = engine_of(decoder)
    other = Sampling(max_new_tokens=12)
    alone = run(engine_of(decoder), [(PROMPT, other)])
    stream = engine.generate(PROMPT, other)
    tokens = [next(stream)]
    sampling = Sampling(max_new_tokens=500, beams=Beams(num_beams=3))
    assert list(engine.generate(PROMPT, sampling)) == theirs
    assert [tokens + list(stream)] == alone


def test_blocks_are_shared_between_beams(models):
    decoder, model = models[2]
    # 6 beams of 96 tokens are 36 blocks when each has its own; 2 are the prompt's.
    theirs = expected(model, PROMPT[:16] * 2, num_beams=6, max_new_tokens=30)
    limits = Limits(cache_tokens=16 * 14, block_tokens=16)
    engine = NativeEngine(decoder, end_tokens=(), limits=limits, kernels="plain torch")
    sampling = Sampling(max_new_tokens=30, beams=Beams(num_beams=6))
    assert list(engine.generate(PROMPT[:16] * 2, sampling)) == theirs
    more = Sampling(max_new_tokens=40, beams=Beams(num_beams=6))
    said = r"shared\(2\) \+ beams\(6\) \* own\(3\) = 20 blocks of 16 tokens, and the cache has 14"
    with pytest.raises(InferError, match=said):
        list(engine.generate(PROMPT[:16] * 2, more))
    assert engine.stats.cache_blocks_held == 0


def their_texts(model, *, end_tokens, **settings):
    """Token lists, scores and the log-probability of each token, of transformers."""
    found = model.generate(
        torch.tensor([PROMPT]),
        pad_token_id=0,
        eos_token_id=list(end_tokens) or None,
        return_dict_in_generate=True,
        output_scores=True,
        **{"do_sample": False, "max_new_tokens": 28, **settings},
    )
    steps = model.compute_transition_scores(
        found.sequences, found.scores, found.beam_indices, normalize_logits=False
    )
    texts = []
    for tokens, logprobs in zip(found.sequences[:, len(PROMPT) :].tolist(), steps, strict=True):
        length = next((at for at, one in enumerate(tokens) if one in end_tokens), len(tokens))
        texts.append((tokens[:length], logprobs[:length].tolist()))
    return texts, found.sequences_scores.tolist()


def searched(engine, sampling):
    """For each text of a search, its tokens, their log-probabilities, its score and its end."""
    numbers = engine.submit_search(PROMPT, sampling)
    events = {number: [] for number in numbers}
    while engine.has_work:
        for event in engine.step():
            events.get(event.request, []).append(event)
    return [
        (
            [one.token for one in each if one.token is not None],
            [one.logprob for one in each if one.token is not None],
            each[-1].score,
            each[-1].end,
        )
        for each in events.values()
    ]


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.3, "top_k": 30}])
def test_several_texts_their_scores_and_probabilities_are_those_of_transformers(models, drawn):
    ends_seen = set()
    for seed, (decoder, model) in enumerate(models):
        ends = sorted({greedy(model)[6], greedy(model)[15]}) if seed else []
        torch.manual_seed(seed)
        theirs, scores = their_texts(
            model,
            end_tokens=ends,
            num_beams=5,
            num_return_sequences=3,
            length_penalty=0.7,
            **({"do_sample": True, **drawn} if drawn else {}),
        )
        beams = Beams(num_beams=5, num_texts=3, length_penalty=0.7)
        sampling = Sampling(max_new_tokens=28, beams=beams, logprobs=2, seed=seed, **drawn)
        engine = engine_of(decoder, end_tokens=ends)
        ours = searched(engine, sampling)
        assert [one[0] for one in ours] == [tokens for tokens, _ in theirs]
        assert [one[2] for one in ours] == pytest.approx(scores, abs=1e-5)
        # Theirs are of the cut distribution where tokens are drawn, ours always of the model's.
        for (_, logprobs, _, end), (_, wanted) in zip(ours, theirs, strict=True):
            assert drawn or logprobs == pytest.approx(wanted, abs=1e-4)
            ends_seen.add(end)
        assert engine.stats.cache_blocks_held == 0
    assert ends_seen == {"end", "length"} or drawn


def test_searches_and_other_requests_in_one_batch_are_to_the_bit_what_they_are_alone(models):
    decoder, _ = models[0]
    beams = Sampling(max_new_tokens=20, beams=Beams(num_beams=4, num_texts=4), logprobs=0)
    drawn = Sampling(max_new_tokens=20, temperature=1.0, logprobs=0, seed=3)
    alone = searched(engine_of(decoder), beams)
    other_alone = logprobs_of(engine_of(decoder), drawn)
    engine = engine_of(decoder)
    first, second = engine.submit_search(PROMPT, beams), engine.submit_search(PROMPT[:7], beams)
    other = engine.submit(PROMPT, drawn)
    events = {number: [] for number in (*first, *second, other)}
    shared_steps = 0
    while engine.has_work:
        shared_steps += engine.stats.num_running == 3
        for event in engine.step():
            events[event.request].append(event.logprob)
    assert [events[number] for number in first] == [logprobs for _, logprobs, _, _ in alone]
    assert events[other] == other_alone
    assert shared_steps > 10
    assert engine.stats.cache_blocks_held == 0


def logprobs_of(engine, sampling):
    engine.submit(PROMPT, sampling)
    found = []
    while engine.has_work:
        found += [event.logprob for event in engine.step()]
    return found


def test_a_search_waits_for_its_blocks_and_keeps_them(models):
    decoder, _ = models[1]
    beams = Sampling(max_new_tokens=24, beams=Beams(num_beams=3, num_texts=2))
    plain = Sampling(max_new_tokens=60)
    alone = searched(engine_of(decoder), beams)
    other_alone = run(engine_of(decoder), [(PROMPT[:5], plain)])
    # A search takes 1 + 3 * 2 blocks, the others 5 each: not all fit into 9.
    engine = engine_of(decoder, cache_tokens=16 * 9)
    numbers = [engine.submit(PROMPT[:5], plain), *engine.submit_search(PROMPT, beams)]
    numbers.append(engine.submit(PROMPT[:5], plain))
    tokens = {number: [] for number in numbers}
    while engine.has_work:
        for event in engine.step():
            if event.token is not None:
                tokens[event.request].append(event.token)
    assert [tokens[number] for number in numbers[1:3]] == [one[0] for one in alone]
    assert [tokens[numbers[0]]] == [tokens[numbers[3]]] == other_alone
    assert engine.stats.num_preempted > 0
    assert engine.stats.cache_blocks_held == 0


@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_a_search_that_nobody_waits_for_gives_its_blocks_back(models, num_steps):
    engine = engine_of(models[0][0])
    numbers = engine.submit_search(PROMPT, Sampling(beams=Beams(num_beams=4, num_texts=2)))
    for _ in range(num_steps):
        engine.step()
    engine.cancel(numbers[0])
    assert engine.has_work
    engine.cancel(numbers[1])
    assert not engine.has_work
    assert engine.stats.cache_blocks_held == 0


def test_more_beams_than_run_at_once_are_refused(models):
    engine = engine_of(models[0][0], max_running=4)
    with pytest.raises(InferError, match="num_beams: found 5, want at most 4, the texts that run"):
        engine.submit(PROMPT, Sampling(max_new_tokens=4, beams=Beams(num_beams=5)))
    assert not engine.has_work


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Beams(num_beams=1), "num_beams: found 1, want at least 2"),
        (lambda: Beams(num_beams=2, length_penalty=float("inf")), r"found inf, want in \[-5, 5\]"),
        (lambda: Beams(num_beams=2, num_texts=3), r"num_texts: found 3, want 1 to num_beams\(2\)"),
    ],
)
def test_settings_out_of_range(make, said):
    with pytest.raises(ValueError, match=said):
        make()
