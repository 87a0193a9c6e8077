"""Expected values: transformers' logits processors, OpenAI's formula, hand calculations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_infer.logits import choose, cut, penalized
from llm_infer.sampling import Sampling

VOCAB = 50


def scores(seed=0):
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def theirs(processors, scores, tokens=()):
    out = scores[None].clone()
    for processor in processors:
        out = processor(torch.tensor([list(tokens)], dtype=torch.long), out)
    return out[0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99),
    top_k=st.sampled_from([0, 1, 5, 49, 60]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_the_cuts_are_those_of_transformers(seed, top_k, top_p, min_p):
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    steps = [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [MinPLogitsWarper(min_p)] if min_p else []
    found = cut(scores(seed), Sampling(top_k=top_k, top_p=top_p, min_p=min_p))
    assert torch.equal(found, theirs(steps, scores(seed)))


def test_the_repetition_penalty_is_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    found = penalized(scores(), Sampling(repetition_penalty=1.7), prompt=[3, 4, 3], answer=[9])
    assert torch.equal(
        found, theirs([RepetitionPenaltyLogitsProcessor(1.7)], scores(), [3, 4, 3, 9])
    )


def test_presence_and_frequency_count_the_answer_alone():
    """logit - count * frequency - (count > 0) * presence (OpenAI's API reference)."""
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    change = penalized(scores(), sampling, prompt=[1, 2], answer=[2, 7, 7, 7]) - scores()
    expected = torch.zeros(VOCAB)
    expected[2], expected[7] = -0.75, -1.25
    assert torch.allclose(change, expected, atol=1e-6)


def test_a_bias_can_force_and_forbid_a_token():
    best = int(scores().argmax())
    draw = {"prompt": [0], "answer": [], "generator": torch.Generator()}
    forced = choose(scores(), Sampling(logit_bias=((17, 100.0),)), **draw)
    forbidden = choose(scores(), Sampling(logit_bias=((best, -100.0),)), **draw)
    assert forced.token == 17
    assert forbidden.token == int(scores().topk(2).indices[1])
    with pytest.raises(ValueError, match="logit_bias: token 50, want below 50"):
        choose(scores(), Sampling(logit_bias=((50, 1.0),)), **draw)


def test_drawn_tokens_follow_the_distribution_and_the_seed():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2, 0.0]))

    def draw(seed, count):
        generator = torch.Generator().manual_seed(seed)
        sampling, common = Sampling(temperature=1.0), {"prompt": [0], "answer": []}
        return [choose(logits, sampling, **common, generator=generator).token for _ in range(count)]

    counts = torch.bincount(torch.tensor(draw(1, 4000)), minlength=4) / 4000
    assert torch.allclose(counts, torch.tensor([0.5, 0.3, 0.2, 0.0]), atol=0.03)
    assert draw(5, 20) == draw(5, 20) != draw(6, 20)


def test_logprobs_are_the_models_own_whatever_is_drawn_from():
    sampling = Sampling(temperature=0.3, top_k=1, logprobs=3, logit_bias=((4, 100.0),))
    draw = {"prompt": [0], "answer": [], "generator": torch.Generator()}
    chosen = choose(scores(), sampling, **draw)
    expected = torch.log(torch.exp(scores()) / torch.exp(scores()).sum())
    best = expected.topk(3)
    assert chosen.token == 4
    assert chosen.logprob == pytest.approx(float(expected[4]), abs=1e-5)
    assert [token for token, _ in chosen.top_logprobs] == best.indices.tolist()
    assert [p for _, p in chosen.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-5)
