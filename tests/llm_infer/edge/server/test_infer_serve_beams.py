"""Beam search through the server; expected texts and scores are those of transformers."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from openai import BadRequestError, OpenAI

from server_process import LLM_INFER, served

PROMPT = "def read("


@pytest.fixture(scope="module")
def client(models):
    command = (LLM_INFER, "serve", models["qwen3"], "--port", "0", "--device", "cpu")
    options = ("--dtype", "float32", "--template", "chatml", "--name", "tiny", "--max-open", "12")
    with (
        served([*map(str, command), *options]) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@cache
def _theirs(folder, num_beams, num_texts, length_penalty=1.0, prompt=PROMPT):
    """Texts, scores and the log-probabilities of each token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    found = model.generate(
        ids,
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=num_texts,
        length_penalty=length_penalty,
        max_new_tokens=12,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    logprobs = model.compute_transition_scores(
        found.sequences, found.scores, found.beam_indices, normalize_logits=False
    )
    texts = tokenizer.batch_decode(found.sequences[:, ids.shape[1] :], skip_special_tokens=True)
    return texts, found.sequences_scores.tolist(), logprobs.tolist()


def _complete(client, stream=False, prompt=PROMPT, **extra):
    return client.completions.create(
        model="tiny", prompt=prompt, max_tokens=12, stream=stream, extra_body=extra
    )


def test_n_texts_of_a_search_come_best_first_with_scores_and_probabilities(client, models):
    texts, scores, logprobs = _theirs(models["qwen3"], 4, 3, 0.5)
    answer = _complete(client, num_beams=4, n=3, length_penalty=0.5, logprobs=1)
    assert [one.text for one in answer.choices] == texts
    assert len(set(texts)) == 3
    assert [one.score for one in answer.choices] == pytest.approx(scores, abs=1e-5)
    for one, wanted in zip(answer.choices, logprobs, strict=True):
        length = len(one.logprobs.token_logprobs)
        assert one.logprobs.token_logprobs == pytest.approx(wanted[:length], abs=1e-4)
    assert answer.usage.completion_tokens == sum(len(one.logprobs.tokens) for one in answer.choices)


def test_the_words_of_vllm_mean_as_many_beams_as_texts(client, models):
    texts, _, _ = _theirs(models["qwen3"], 3, 3)
    answer = _complete(client, use_beam_search=True, n=3)
    assert [one.text for one in answer.choices] == texts
    (best,) = _complete(client, use_beam_search=True, best_of=3).choices
    assert best.text == texts[0]


def test_a_stream_brings_each_text_and_its_score(client, models):
    texts, scores, _ = _theirs(models["qwen3"], 4, 2)
    found, found_scores = ["", ""], [None, None]
    for chunk in _complete(client, stream=True, num_beams=4, n=2):
        (choice,) = chunk.choices
        found[choice.index] += choice.text
        if choice.finish_reason:
            found_scores[choice.index] = choice.score
    assert found == texts
    assert found_scores == pytest.approx(scores, abs=1e-5)


def test_a_chat_is_searched_too(client, models):
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    texts, scores, _ = _theirs(models["qwen3"], 4, 2, prompt=prompt)
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12}
    answer = client.chat.completions.create(
        model="tiny", **asked, n=2, extra_body={"num_beams": 4, "early_stopping": False}
    )
    assert [one.message.content for one in answer.choices] == texts
    assert [one.score for one in answer.choices] == pytest.approx(scores, abs=1e-5)


def test_several_prompts_and_requests_are_searched_side_by_side(client, models):
    prompts = [PROMPT, "a", "open(path)"]
    expected = [_theirs(models["qwen3"], 4, 1, prompt=prompt)[0][0] for prompt in prompts]
    answer = _complete(client, prompt=prompts, num_beams=4)
    assert [one.text for one in answer.choices] == expected
    with ThreadPoolExecutor(3) as pool:
        answers = pool.map(lambda prompt: _complete(client, prompt=prompt, num_beams=4), prompts)
        assert [one.choices[0].text for one in answers] == expected


def test_a_request_without_beams_is_told_no_score(client):
    (choice,) = _complete(client, temperature=0).choices
    assert not hasattr(choice, "score")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_beams": 0}, "num_beams: found 0, want greater than or equal to 1"),
        ({"num_beams": 3, "n": 4}, "n: found 4, a search with 3 beams has as many texts"),
        ({"use_beam_search": True}, "use_beam_search: found one beam"),
        ({"use_beam_search": False, "num_beams": 2}, "num_beams: found 2 with use_beam_search"),
        ({"use_beam_search": True, "num_beams": 1}, "num_beams: found 1 with use_beam_search"),
        ({"length_penalty": 2.0}, "length_penalty: only with num_beams"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping: found 'soon'"),
        ({"num_beams": 2, "best_of": 3}, "best_of: found 3 with 2 beams"),
        ({"num_beams": 2, "response_format": {"type": "json_object"}}, "response_format: not with"),
        ({"num_beams": 2, "echo": True, "logprobs": 1}, "num_beams: no beam search with echo"),
        ({"num_beams": 13}, r"num_beams: 1 prompts \* num_beams\(13\) = 13 texts; this server"),
        ({"num_beams": 65}, "num_beams: found 65, want less than or equal to 64"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(client, fields, said):
    with pytest.raises(BadRequestError, match=said):
        _complete(client, **fields)
