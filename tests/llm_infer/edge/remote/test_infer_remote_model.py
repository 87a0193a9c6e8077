"""A model on another server; the server's answers are the prompt, again and again."""

import http.client
import socket
import threading

import pytest

from llm_infer.edge.remote.model import RemoteModel
from llm_infer.edge.remote.server import server_at
from llm_infer.errors import InferError
from llm_infer.sampling import Beams, Sampling
from server_process import ECHO, served


def _at(engine):
    return server_at(engine, key=None)


@pytest.fixture(scope="module")
def url():
    with served([*ECHO, "--max-open", "1"]) as server:
        yield server.url


def test_a_text_and_a_conversation_are_continued(url):
    model = RemoteModel(_at(f"openai:{url}"), "echo")
    stream = model.complete("abc", Sampling(max_new_tokens=7))
    assert "".join(stream) == stream.text == "abcabca"
    assert (stream.num_prompt_tokens, stream.num_tokens, stream.finish_reason) == (3, 7, "length")
    assert stream.first_token_s > 0
    stream = model.converse([{"role": "user", "content": "né"}], Sampling(max_new_tokens=3))
    assert "".join(stream) == "nén"


def test_settings_reach_the_server(url):
    model = RemoteModel(_at(f"openai:{url}/v1"), "echo")
    stream = model.complete("abc", Sampling(max_new_tokens=50, stop=("ca",), top_k=3, min_p=0.1))
    assert "".join(stream) == "ab"
    assert stream.finish_reason == "stop"


def test_a_stream_left_early_frees_its_place(url):
    # The server takes one answer at a time: the second waits for the first to be closed.
    model = RemoteModel(_at(f"openai:{url}"), "echo")
    pieces = iter(model.complete("abc", Sampling(max_new_tokens=4000)))
    next(pieces)
    pieces.close()
    assert "".join(model.complete("xy", Sampling(max_new_tokens=2))) == "xy"


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("openai:localhost:8000", "want openai:http://HOST:PORT/v1"),
        ("openai:http://", "want openai:http://HOST:PORT/v1"),
        ("openai:http://x:99999", "the port is no number"),
    ],
)
def test_an_address_that_is_none_is_refused(engine, said):
    with pytest.raises(InferError, match=said):
        _at(engine)


def test_errors_of_the_server_are_told(url):
    with pytest.raises(InferError, match="no model eco: did you mean echo"):
        RemoteModel(_at(f"openai:{url}"), "eco")
    model = RemoteModel(_at(f"openai:{url}"), "echo")
    with pytest.raises(InferError, match="status 400: the prompt has 5000 tokens"):
        list(model.complete("a" * 5000, Sampling()))
    with pytest.raises(InferError, match="beam search: OpenAI's API has none"):
        model.complete("a", Sampling(beams=Beams(num_beams=2)))
    with pytest.raises(InferError, match="status 404: no route"):
        RemoteModel(_at(f"openai:{url}/v2"), "echo")


def test_a_server_that_is_not_there(unused_port):
    with pytest.raises(InferError, match="cannot be reached"):
        RemoteModel(_at(f"openai:http://127.0.0.1:{unused_port}"), "echo")


@pytest.fixture
def unused_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _canned(*answers):
    """The port of a server that gives each connection the next of these bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run():
        with listener:
            for answer in answers:
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as request:
                    # Whole: what a closed socket has not read resets the connection.
                    request.readline()
                    fields = http.client.parse_headers(request)
                    request.read(int(fields.get("content-length", 0)))
                    connection.sendall(answer)

    threading.Thread(target=run, daemon=True).start()
    return listener.getsockname()[1]


_HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
_MODELS = _HEAD + b'{"data": [{"id": "m"}]}'


def test_a_busy_server_is_asked_again_when_it_says():
    busy = b"HTTP/1.1 429 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
    event = b'data: {"choices": [{"text": "hi", "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    port = _canned(_MODELS, busy, busy, _HEAD + event)
    model = RemoteModel(_at(f"openai:http://127.0.0.1:{port}"), "m")
    stream = model.complete("x", Sampling())
    assert "".join(stream) == "hi"
    # It told no counts: a piece counts as a token.
    assert (stream.num_tokens, stream.num_prompt_tokens, stream.finish_reason) == (1, None, "end")


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b'data: {"choices": [{"text": "hi"}]}\n\n', "ended without its last event"),
        (b"data: {\n\n", "want JSON"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
    ],
)
def test_half_an_answer_is_an_error(sent, said):
    port = _canned(_MODELS, _HEAD + sent)
    model = RemoteModel(_at(f"openai:http://127.0.0.1:{port}"), "m")
    with pytest.raises(InferError, match=said):
        list(model.complete("x", Sampling()))
