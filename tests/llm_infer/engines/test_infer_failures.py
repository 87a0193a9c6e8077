"""Requests that fail beside others that must not notice: a tiny Qwen3 with a broken token.

Expected answers are those that the others get alone.
"""

import pytest
import torch

from ckpt_zoo import Case
from llm_infer.engine import Event
from llm_infer.engines.native import Limits
from llm_infer.engines.prompted import PromptedEngine
from llm_infer.errors import BrokenModelError
from llm_infer.sampling import Beams, Sampling
from native_decoder import open_decoder, run

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "vocab_size": 250,
    "tie_word_embeddings": False,
}
BROKEN = 7
GOOD = [([1, 2, 3, 4, 5], Sampling(max_new_tokens=12)), ([9] * 40, Sampling(max_new_tokens=12))]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    from safetensors.torch import load_file, save_file

    folder = Case("qwen3", SIZES).save(tmp_path_factory.mktemp("failures") / "hf")
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    weights["model.embed_tokens.weight"][BROKEN] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    return open_decoder(folder)


def _engine(decoder, **limits):
    limits = Limits(**({"cache_tokens": 4096, "block_tokens": 16} | limits))
    return PromptedEngine(decoder, end_tokens=[], limits=limits, kernels="plain torch")


def _finished(engine):
    """Tokens and failures by request, when all are over."""
    tokens, failures = dict[int, list[int]](), dict[int, Exception]()
    while engine.has_work:
        for event in engine.step():
            if event.failure is not None:
                assert event == Event(
                    request=event.request, token=None, end=None, failure=event.failure
                )
                assert event.request not in failures
                failures[event.request] = event.failure
            elif event.token is not None:
                tokens.setdefault(event.request, []).append(event.token)
    return tokens, failures


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=5),
        Sampling(max_new_tokens=5, temperature=1.0),
        Sampling(max_new_tokens=5, logprobs=3, presence_penalty=1.0),
        Sampling(max_new_tokens=5, beams=Beams(num_beams=3)),
    ],
)
def test_logits_that_are_no_numbers_fail_their_request_alone(decoder, sampling):
    expected = run(_engine(decoder), GOOD)
    engine = _engine(decoder)
    numbers = [engine.submit(*request) for request in GOOD]
    bad = engine.submit([BROKEN, 1, 2], sampling)
    tokens, failures = _finished(engine)
    assert [tokens[number] for number in numbers] == expected
    assert list(failures) == [bad]
    assert isinstance(failures[bad], BrokenModelError)
    assert "after 0 tokens of the answer the model's logits are not finite (found nan)" in str(
        failures[bad]
    )
    # Its blocks are free, and what it left in them reaches nobody.
    assert engine.stats.cache_blocks_held == 0
    assert run(engine, GOOD) == expected


def test_a_prompt_whose_probabilities_are_no_numbers_fails(decoder):
    engine = _engine(decoder)
    good = engine.submit(*GOOD[0])
    bad = engine.submit_read([1, 2, BROKEN, 4], Sampling(max_new_tokens=1, logprobs=0))
    tokens, failures = _finished(engine)
    assert (list(tokens), list(failures)) == ([good], [bad])


def test_the_reader_of_one_answer_is_told_why_it_failed(decoder):
    engine = _engine(decoder)
    with pytest.raises(BrokenModelError, match="found nan"):
        list(engine.generate([BROKEN], Sampling()))
    assert not engine.has_work


class _Raising:
    """A guide that fails at its third token."""

    def allowed(self, answer):
        if len(answer) == 2:
            raise RuntimeError("the guide's own defect")
        return b"\1" * SIZES["vocab_size"]


def test_a_guide_that_raises_fails_its_request_alone(decoder):
    expected = run(_engine(decoder), GOOD)
    engine = _engine(decoder)
    numbers = [engine.submit(*request) for request in GOOD]
    bad = engine.submit_guided([1, 2], Sampling(max_new_tokens=9), _Raising())
    tokens, failures = _finished(engine)
    assert [tokens[number] for number in numbers] == expected
    assert {number: str(one) for number, one in failures.items()} == {bad: "the guide's own defect"}
    assert len(tokens[bad]) == 2


def test_a_step_that_fails_takes_those_it_computed_and_no_others(decoder, monkeypatch):
    expected = run(_engine(decoder), GOOD)
    # One at a time: the second waits while the step of the first fails.
    engine = _engine(decoder, max_running=1)
    compute = engine._runner.run

    def failing(parts, **rows):
        if any(part.tokens[0] == 33 for part in parts):
            raise torch.OutOfMemoryError("as a device says it")
        return compute(parts, **rows)

    monkeypatch.setattr(engine._runner, "run", failing)
    bad = engine.submit([33, 1], Sampling(max_new_tokens=3))
    numbers = [engine.submit(*request) for request in GOOD]
    tokens, failures = _finished(engine)
    assert [tokens[number] for number in numbers] == expected
    assert {number: str(one) for number, one in failures.items()} == {bad: "as a device says it"}
    assert engine.stats.cache_blocks_held == 0


def test_a_search_that_fails_in_a_step_is_told_once_a_text(decoder, monkeypatch):
    engine = _engine(decoder)
    numbers = engine.submit_search(
        [1, 2], Sampling(max_new_tokens=6, beams=Beams(num_beams=3, num_texts=2))
    )
    engine.step()
    engine.step()

    def failing(parts, **rows):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(engine._runner, "run", failing)
    events = engine.step()
    assert [event.request for event in events] == list(numbers)
    assert all(str(event.failure) == "full" for event in events)
    assert engine.stats.cache_blocks_held == 0
    assert not engine.has_work
