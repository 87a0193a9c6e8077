"""`llm-infer serve` with a tiny model, asked by the official client; expected is transformers'."""

import pytest
from openai import BadRequestError, OpenAI

from server_process import LLM_INFER, served

PROMPT = "def read("


@pytest.fixture(scope="module")
def client(models):
    command = (LLM_INFER, "serve", models["qwen3"], "--port", "0", "--device", "cpu")
    options = ("--dtype", "float32", "--template", "chatml", "--name", "tiny")
    with (
        served([*map(str, command), *options]) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def _complete(client, **fields):
    fields = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0} | fields
    return client.completions.create(**fields)


def _expected(folder, prompt, count):
    """Greedy text of transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    new = model.generate(ids, do_sample=False, max_new_tokens=count, pad_token_id=0)[0]
    return tokenizer.decode(new[ids.shape[1] :], skip_special_tokens=True)


def test_greedy_text_is_that_of_transformers(client, models):
    expected = _expected(models["qwen3"], PROMPT, 12)
    assert _complete(client).choices[0].text == expected
    pieces = [chunk.choices[0].text for chunk in _complete(client, stream=True)]
    assert "".join(pieces) == expected
    assert len(pieces) > 3


def test_a_chat_is_written_with_the_named_template(client, models):
    # ChatML, https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    messages = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=8, temperature=0
    )
    assert answer.choices[0].message.content == _expected(models["qwen3"], prompt, 8)


def test_a_seed_repeats_an_answer_and_n_answers_differ(client):
    def draw(seed):
        answer = _complete(client, temperature=1, n=2, seed=seed)
        return [choice.text for choice in answer.choices]

    first = draw(3)
    assert draw(3) == first
    assert first[0] != first[1]
    assert draw(4)[0] == first[1], "answer i is drawn with seed + i"


def test_a_stop_string_across_tokens_cuts_the_text(client, models):
    text = _expected(models["qwen3"], PROMPT, 20)
    stop = next(text[i : i + 3] for i in range(4, 12) if text.find(text[i : i + 3]) == i)
    choice = _complete(client, max_tokens=20, stop=stop).choices[0]
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")


def test_a_prompt_longer_than_the_context_is_told_apart(client):
    with pytest.raises(BadRequestError) as caught:
        _complete(client, prompt="x" * 100)
    assert caught.value.code == "context_length_exceeded"
