"""lm-evaluation-harness asks `llm-infer serve`: `local-completions` scores as its own `hf`."""

import pytest

from server_process import LLM_INFER, served
from tiny_lm import TEXT, make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("asked") / "tiny", "llama", context=256, spread=0.12)


@pytest.fixture(scope="module")
def asked(folder):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    command = (LLM_INFER, "serve", folder, "--port", "0", "--device", "cpu", "--dtype", "float32")
    with served([*map(str, command)]) as server:
        yield LocalCompletionsAPI(
            model="tiny",
            base_url=f"{server.url}/v1/completions",
            tokenizer=str(folder),
            tokenizer_backend="huggingface",
            batch_size=2,
            max_length=256,
            max_retries=1,
        )


def _instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_continuations_score_as_lm_evals_hf(folder, asked):
    """Contexts of several blocks of the cache that begin alike, short ones, greedy ones."""
    import torch
    from lm_eval.models.huggingface import HFLM

    shots = TEXT[:180]
    pairs = [
        (shots + end, said) for end in ("The", "Grüße") for said in (" quick brown", "!", "\n")
    ]
    pairs += [("a", "b"), ("def read(", "path):\n    with open(path) as file:")]
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    for context in (TEXT[:length] for length in range(5, 60, 3)):
        tokens = torch.tensor([theirs.tok_encode(context)])
        best = int(theirs.model(tokens).logits[0, -1].argmax())
        pairs.append((context, theirs.tok_decode([best])))
    expected = theirs.loglikelihood(_instances("loglikelihood", pairs))
    found = asked.loglikelihood(_instances("loglikelihood", pairs))
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-4)
    assert [one[1] for one in found] == [one[1] for one in expected]
    assert 0 < sum(is_greedy for _, is_greedy in expected) < len(pairs)


def test_an_answer_that_ends_at_once_still_has_its_token(folder, asked):
    """lm-eval takes the last probability for that of a new token: of the end token here."""
    import requests

    answer = requests.post(
        asked.base_url,
        json={"model": "tiny", "prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 1,
              "temperature": 0, "logit_bias": {"0": 100}},
        timeout=60,
    ).json()  # fmt: skip
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert len(choice["logprobs"]["token_logprobs"]) == answer["usage"]["prompt_tokens"] + 1
