"""Requests that cannot be answered: the right status, OpenAI's shape, and a server that goes on."""

import http.client
import json
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from server_process import ECHO, served

CHAT = "/v1/chat/completions"


def _post(server, path, body, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "application/json"} | headers)
    response = connection.getresponse()
    found = response.status, dict(response.getheaders()), json.loads(response.read())
    connection.close()
    return found


def _request(**fields):
    return {"model": "echo", "messages": [{"role": "user", "content": "ab"}]} | fields


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"{", 400, None, None),
        (_request(n=1000), 400, "n", "invalid_value"),
        (_request(n=65), 400, "n", None),
        (_request(temperature=9), 400, "temperature", "invalid_value"),
        (_request(messages=[{"role": "robot", "content": ""}]), 400, "messages.0.role",
         "invalid_value"),
        (_request(messages=[{"role": "user", "content": ""}]), 400, "messages", None),
        (_request(messages=[{"role": "user", "content": "x" * 4096}]), 400, "messages",
         "context_length_exceeded"),
        (_request(model="gpt"), 404, "model", "model_not_found"),
        (_request(response_format={"type": "json_object"}), 400, "response_format", None),
        (_request(chat_template_kwargs={"tools": []}), 400, "chat_template_kwargs", None),
        (_request(logit_bias={"9" * 5000: 1}), 400, "logit_bias", None),
        (_request(functions=[{}]), 400, "functions", "unsupported_parameter"),
        (b"[" * (1 << 21), 413, None, "request_too_large"),
    ],
)  # fmt: skip
def test_a_bad_request_gets_its_status_and_says_why(echo, body, status, param, code):
    found, _, answer = _post(echo, CHAT, body)
    assert found == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert (answer["error"]["param"], answer["error"]["code"]) == (param, code)
    assert answer["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_the_engine_is_500_and_the_server_goes_on(echo, client, stream):
    message = {"role": "user", "content": "fail"}
    status, _, answer = _post(echo, CHAT, _request(messages=[message], stream=stream))
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert client.models.list().data


def test_other_content_routes_and_methods(echo):
    assert _post(echo, CHAT, b"{}", **{"Content-Type": "text/plain"})[0] == 415
    assert _post(echo, "/v1/nothing", {})[0] == 404
    assert _post(echo, "/v1/models", {})[0] == 405


def test_a_body_without_a_length_is_bounded_too(echo):
    with socket.create_connection(("127.0.0.1", echo.port)) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        answer = b""
        connection.settimeout(10)
        try:
            for _ in range(40):
                connection.sendall(chunk)
            answer = connection.recv(4096)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert answer == b"" or b" 413 " in answer
    assert _post(echo, CHAT, _request(max_tokens=1))[0] == 200


def test_the_clients_exceptions_are_openais(client):
    def ask(**fields):
        client.chat.completions.create(**_request(**fields))

    with pytest.raises(openai.BadRequestError, match="found 9, want less than or equal to 2"):
        ask(temperature=9)
    with pytest.raises(openai.NotFoundError):
        ask(model="gpt")
    with pytest.raises(openai.InternalServerError):
        ask(messages=[{"role": "user", "content": "fail"}])


def test_the_key_is_asked_for_where_there_is_one_and_a_busy_server_says_when_to_return():
    with served([*ECHO, "--api-key", "sesame", "--slow", "0.005", "--max-open", "2"]) as server:
        key = {"Authorization": "Bearer sesame"}
        assert _post(server, CHAT, _request())[0] == 401
        assert _post(server, CHAT, _request(), Authorization="Bearer open")[0] == 401
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame", max_retries=0)
        stream = client.chat.completions.create(**_request(n=2, stream=True))
        next(iter(stream))
        status, headers, answer = _post(server, CHAT, _request(), **key)
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**_request())
        # Leaving frees the places: nobody waits for what nobody reads.
        stream.close()
        _until_free(server, key)
        # So does leaving before an answer that is not streamed.
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        headers = {"Content-Type": "application/json", **key}
        connection.request("POST", CHAT, json.dumps(_request(n=2)), headers)
        while _post(server, CHAT, _request(max_tokens=1), **key)[0] == 200:
            pass
        connection.close()
        _until_free(server, key)


def _until_free(server, key):
    """Far sooner than the answer that was left would have ended: in 20 s."""
    deadline = time.monotonic() + 15
    while _post(server, CHAT, _request(max_tokens=1), **key)[0] == 429:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_asked_to_end_finishes_what_runs_within_its_grace():
    with served([*ECHO, "--slow", "0.01", "--grace", "10"]) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(**_request(stream=True, max_tokens=40))
        chunks = [next(iter(stream))]
        server.process.terminate()
        chunks += list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "ab" * 20
        assert server.process.wait(20) == 0


def test_beyond_the_grace_it_ends_anyway_and_says_so(capfd):
    with served([*ECHO, "--slow", "0.05", "--grace", "1"]) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(**_request(stream=True))
        next(iter(stream))
        start = time.monotonic()
        with ThreadPoolExecutor() as pool:
            whole = pool.submit(client.chat.completions.create, **_request())
            time.sleep(0.3)
            server.process.terminate()
            with pytest.raises(openai.APIError, match="ends before this answer does"):
                list(stream)
            with pytest.raises(openai.InternalServerError) as caught:
                whole.result()
        assert caught.value.status_code == 503
        assert server.process.wait(20) == 0
        assert time.monotonic() - start < 10
    assert "Traceback" not in capfd.readouterr().err


def test_a_port_that_is_taken_is_an_error(echo):
    command = [*ECHO, "--port", str(echo.port)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {echo.port}: Address already in use" in found.stderr
