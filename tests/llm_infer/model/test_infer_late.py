"""A model whose weights come late, against the same model at once."""

import threading

import pytest

from ckpt_zoo import Case
from llm_infer.model.late import LateModel
from llm_infer.sampling import Sampling
from native_decoder import engine_of, open_decoder, run

REQUESTS = [([3, 1, 4, 1, 5], Sampling(max_new_tokens=8)), ([9, 2, 6], Sampling(max_new_tokens=5))]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    return open_decoder(Case("qwen3", sizes).save(tmp_path_factory.mktemp("late") / "hf"))


def late(decoder, make):
    return LateModel(
        make, arch=decoder.arch, device=decoder.device, dtype=decoder.dtype, place="cpu"
    )


def test_requests_are_taken_at_once_and_answered_when_the_weights_are_there(decoder):
    released, answers = threading.Event(), []

    def make():
        assert released.wait(60)
        return decoder

    model = late(decoder, make)
    for fact in ("context", "short_length", "grows_from", "cache_shapes", "place"):
        assert getattr(model, fact) == getattr(decoder, fact)
    engine = engine_of(model)
    thread = threading.Thread(target=lambda: answers.extend(run(engine, REQUESTS)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    released.set()
    thread.join(60)
    assert answers == run(engine_of(decoder), REQUESTS)


def test_what_is_wrong_with_the_weights_is_raised_where_they_are_needed(decoder):
    def make():
        raise ValueError("half a file")

    model = late(decoder, make)
    with pytest.raises(ValueError, match="half a file"):
        model.wait()
    with pytest.raises(ValueError, match="half a file"):
        list(engine_of(model).generate(*REQUESTS[0]))
