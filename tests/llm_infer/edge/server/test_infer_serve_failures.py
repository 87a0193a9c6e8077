"""A model with a broken token, served: requests with it fail, those beside them do not notice.

What a good request is answered is what the whole model answers it.
"""

import shutil

import openai
import pytest

from server_process import LLM_INFER, served

GOOD, BROKEN = "def read(", "Z"


def _served(folder):
    command = (LLM_INFER, "serve", folder, "--port", "0", "--device", "cpu")
    options = ("--dtype", "float32", "--template", "chatml", "--name", "tiny")
    return served([*map(str, command), *options])


def _client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def token(models):
    """That of "Z"."""
    from transformers import AutoTokenizer

    (token,) = AutoTokenizer.from_pretrained(models["qwen3"]).encode(BROKEN)
    return token


@pytest.fixture(scope="module")
def broken(models, token, tmp_path_factory):
    """Where that token has no numbers."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("broken") / "hf"
    shutil.copytree(models["qwen3"], folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with _served(folder) as server:
        yield server


@pytest.fixture(scope="module")
def expected(models):
    with _served(models["qwen3"]) as server, _client(server) as client:
        return _complete(client, GOOD)


def _complete(client, prompt, **fields):
    asked = {"model": "tiny", "prompt": prompt, "max_tokens": 20, "temperature": 0} | fields
    return client.completions.create(**asked).choices[0].text


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 1, "n": 3},
        {"logprobs": 2, "stream": True},
        {"logprobs": 2, "echo": True},
        {"extra_body": {"num_beams": 2}},
    ],
)
def test_a_broken_token_fails_its_request_alone(broken, expected, fields):
    with _client(broken) as client:
        stream = client.completions.create(
            model="tiny", prompt=GOOD, max_tokens=20, temperature=0, stream=True
        )
        text = next(stream).choices[0].text
        with pytest.raises(openai.InternalServerError) as caught:
            _complete(client, BROKEN, **fields)
        assert caught.value.type == "server_error"
        assert caught.value.code == "broken_model"
        assert "nan" in caught.value.message
        text += "".join(chunk.choices[0].text for chunk in stream)
        assert text == expected
        assert _complete(client, GOOD) == expected


def test_a_failure_within_a_stream_ends_it_with_an_error(broken, token):
    """A bias makes the broken token the first of the answer."""
    with _client(broken) as client:
        stream = client.completions.create(
            model="tiny",
            prompt=GOOD,
            max_tokens=20,
            temperature=0,
            logit_bias={str(token): 100},
            stream=True,
        )
        assert next(stream).choices[0].text == BROKEN
        with pytest.raises(openai.APIError, match="after 1 tokens of the answer"):
            list(stream)
        assert client.models.list().data
