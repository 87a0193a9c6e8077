"""Requests at the edges of what numbers can be, to a model that computes.

The expected text of a temperature near 0 is the greedy one, its limit.
"""

import http.client
import json

import pytest

from server_process import LLM_INFER, served

PROMPT = "def read("


@pytest.fixture(scope="module")
def server(models):
    command = (LLM_INFER, "serve", models["qwen3"], "--port", "0", "--device", "cpu")
    options = ("--dtype", "float32", "--template", "chatml", "--name", "tiny")
    with served([*map(str, command), *options]) as server:
        yield server


def _post(server, fields, path="/v1/completions"):
    """Status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    prompt = {"prompt": PROMPT} if path == "/v1/completions" else {}
    asked = {"model": "tiny", "max_tokens": 6, **prompt, **fields}
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(asked).encode(), headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


def _strict(text):
    """JSON as the standard has it: without infinity."""

    def refuse(found):
        raise ValueError(found)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-40, 1e-300, 5e-324])
def test_as_the_temperature_falls_the_likeliest_text_is_left(server, temperature):
    status, body = _post(server, {"temperature": temperature, "seed": 1})
    greedy = _strict(_post(server, {"temperature": 0})[1])
    assert status == 200
    assert _strict(body)["choices"][0]["text"] == greedy["choices"][0]["text"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"repetition_penalty": 1e-300}, "repetition_penalty: found 1e-300, want in [0.01, 100]"),
        ({"repetition_penalty": 0}, "repetition_penalty: found 0.0, want in [0.01, 100]"),
        (
            {"num_beams": 2, "length_penalty": 1e5},
            "found 100000.0, want in [-5, 5]",
        ),
        ({"num_beams": 2, "length_penalty": -1e300}, "length_penalty: found -1e+300"),
        ({"num_beams": 2, "temperature": 1e-300}, "want 0 or at least 0.001 with beams"),
    ],
)
def test_numbers_that_cannot_be_computed_with_are_refused_by_name(server, fields, said):
    status, body = _post(server, fields)
    error = _strict(body)["error"]
    assert status == 400
    assert said in error["message"]
    assert error["param"] in fields


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_that_a_schema_forbids_is_told_no_probability(server, stream):
    """Minus infinity is no JSON."""
    schema = {"name": "x", "schema": {"enum": ["a"]}}
    fields = {
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema", "json_schema": schema},
        "logprobs": True,
        "top_logprobs": 20,
        "stream": stream,
    }
    status, body = _post(server, fields, "/v1/chat/completions")
    assert status == 200
    texts = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: {")]
    choices = [_strict(text)["choices"][0] for text in (texts if stream else [body])]
    told = [token for one in choices for token in (one["logprobs"] or {}).get("content", ())]
    assert told
    assert all(1 <= len(token["top_logprobs"]) < 20 for token in told)
