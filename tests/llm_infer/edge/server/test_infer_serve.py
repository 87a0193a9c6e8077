"""`llm-infer serve` with a tiny model, asked by the official client; expected is transformers'."""

import json
import shutil
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from openai import BadRequestError, OpenAI

from server_process import LLM_INFER, served
from tiny_lm import edit_json

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


@cache
def _theirs(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def _tokens(folder, prompt, count):
    """Prompt and greedy answer of transformers, [1, T]."""
    import torch

    model, tokenizer = _theirs(folder)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    whole = model.generate(ids, do_sample=False, max_new_tokens=count, pad_token_id=0)
    return ids, whole


def _expected(folder, prompt, count):
    """Greedy text of transformers."""
    ids, whole = _tokens(folder, prompt, count)
    return _theirs(folder)[1].decode(whole[0, ids.shape[1] :], skip_special_tokens=True)


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


def test_tools_are_told_to_the_template(client):
    """ChatML of llm-data writes them at length, which leaves no room in this tiny context."""
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    with pytest.raises(BadRequestError, match=r"the prompt has \d{3} tokens"):
        client.chat.completions.create(**asked, tools=tools)
    client.chat.completions.create(**asked, tools=tools, tool_choice="none")


def test_many_at_once_get_what_each_gets_alone(client, models):
    prompts = [PROMPT, "a", "Grüße", "你好", "0123456789", "def", "open(path)", "file"]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda p: _complete(client, prompt=p).choices[0].text, prompts))
    assert texts == [_expected(models["qwen3"], prompt, 12) for prompt in prompts]


def test_log_probabilities_are_those_of_transformers(client, models):
    import torch

    answer = _complete(client, max_tokens=6, logprobs=3).choices[0].logprobs
    ids, whole = _tokens(models["qwen3"], PROMPT, 6)
    model, tokenizer = _theirs(models["qwen3"])
    with torch.no_grad():
        logprobs = model(whole).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
    chosen = logprobs.gather(1, whole[0, ids.shape[1] :, None])[:, 0]
    assert answer.token_logprobs == pytest.approx(chosen.tolist(), abs=1e-4)
    for row, found in zip(logprobs, answer.top_logprobs, strict=True):
        best = row.topk(3)
        assert sorted(found.values(), reverse=True) == pytest.approx(best.values.tolist(), abs=1e-4)
        assert set(found) == {tokenizer.decode([one]) for one in best.indices.tolist()}


@pytest.mark.parametrize("count", [0, 1, 6])
@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_has_the_log_probabilities_of_the_prompt_too(client, models, count, stream):
    """OpenAI's legacy format: none for the first token, offsets into prompt and answer."""
    import torch

    prompt = "def Grüße(0123)"
    ids, whole = _tokens(models["qwen3"], prompt, max(count, 1))
    whole = whole[:, : ids.shape[1] + count]
    model, tokenizer = _theirs(models["qwen3"])
    with torch.no_grad():
        logprobs = model(whole).logits[0, :-1].log_softmax(-1)
    answer = _complete(
        client, prompt=prompt, echo=True, logprobs=2, max_tokens=count, stream=stream
    )
    text, found, top, offsets, tokens = "", [], [], [], []
    for choice in [one.choices[0] for one in (answer if stream else [answer])]:
        text += choice.text
        found += choice.logprobs.token_logprobs
        top += choice.logprobs.top_logprobs
        offsets += choice.logprobs.text_offset
        tokens += choice.logprobs.tokens
    assert text == tokenizer.decode(whole[0])
    assert tokens == [tokenizer.decode([one]) for one in whole[0]]
    chosen = logprobs.gather(1, whole[0, 1:, None])[:, 0].tolist()
    assert (found[0], top[0]) == (None, None)
    assert found[1:] == pytest.approx(chosen, abs=1e-4)
    for row, one in zip(logprobs, top[1:], strict=True):
        best = row.topk(2)
        wanted = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        # Parts of characters are all written alike: the likeliest of them counts.
        by_text = {tokenizer.decode([token]): value for token, value in reversed(list(wanted))}
        assert one == pytest.approx(by_text, abs=1e-4)
    # A token starts where the text that is whole before it ends.
    assert offsets == [
        len(tokenizer.decode(whole[0, :i]).rstrip("\ufffd")) for i in range(len(tokens))
    ]


def test_prompts_are_read_beside_other_requests_and_whatever_is_in_the_cache(client, models):
    prompts = [PROMPT, "Grüße aus Köln", "x", [70, 71, 72, 73]]

    def read(prompt):
        choice = _complete(client, prompt=prompt, echo=True, logprobs=1, max_tokens=1).choices[0]
        return choice.logprobs.token_logprobs

    alone = [read(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        texts = [pool.submit(_complete, client) for _ in range(4)]
        assert list(pool.map(read, prompts * 2)) == alone * 2
        assert {one.result().choices[0].text for one in texts} == {
            _expected(models["qwen3"], PROMPT, 12)
        }


def test_a_bias_can_force_a_token(client, models):
    token = 65
    text = _complete(client, logit_bias={str(token): 100}, max_tokens=4).choices[0].text
    assert text == _theirs(models["qwen3"])[1].decode([token]) * 4


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


SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "sizes": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
    },
    "required": ["colour", "sizes"],
    "additionalProperties": False,
}


def _format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def test_answers_follow_a_schema_whatever_the_model_would_say(client):
    # A random model, hot: four answers of one request, beside one that is free. The context is too
    # short for a chat.
    with ThreadPoolExecutor(1) as pool:
        free = pool.submit(_complete, client)
        answer = _complete(
            client, prompt="a", n=4, temperature=2, seed=1, max_tokens=60,
            extra_body={"response_format": _format(SCHEMA)},
        )  # fmt: skip
        assert free.result().choices[0].text == _complete(client).choices[0].text
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 4
    found = [json.loads(choice.text) for choice in answer.choices]
    for one in found:
        assert set(one) == {"colour", "sizes"}
        assert one["colour"] in ("red", "blue")
        assert [type(size) for size in one["sizes"]] == [bool, bool]
    assert len({json.dumps(one) for one in found}) > 1


def test_a_schema_that_cannot_be_followed_is_refused(client):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(BadRequestError, match="response_format: the schema cannot be followed"):
        client.chat.completions.create(
            model="tiny", messages=messages, response_format=_format({"type": "colour"})
        )


def test_metrics_tell_what_was_found_in_the_cache(client):
    def value(name):
        with urllib.request.urlopen(
            f"{str(client.base_url).removesuffix('/v1/')}/metrics"
        ) as found:
            lines = found.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    before = value("llm_infer_started_prompt_tokens")
    assert _complete(client, prompt=[70, 71, 72]).usage.prompt_tokens == 3
    assert value("llm_infer_started_prompt_tokens") - before == 3
    assert value("llm_infer_running_answers") == value("llm_infer_cache_blocks_held") == 0
    assert value("llm_infer_cache_blocks") > 0


def test_weights_that_turn_out_broken_end_the_server(models, tmp_path):
    """Found only while they are put in place: two copies of one table that differ."""
    folder = shutil.copytree(models["qwen3"], tmp_path / "m")
    edit_json(folder / "config.json", tie_word_embeddings=True)
    command = (LLM_INFER, "serve", str(folder), "--port", "0", "--device", "cpu")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "lm_head.weight differs from model.embed_tokens.weight" in done.stderr
    assert "Traceback" not in done.stderr
