"""The official client of a server that says what it is asked."""

from contextlib import contextmanager

from openai import OpenAI

from echo_server import END
from server_process import ECHO, served


@contextmanager
def echo_client(*arguments):
    """A client of `serve` with these further arguments."""
    with (
        served([*ECHO, *arguments]) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def say(client, text, **fields):
    """The chat completion that is `text`: the prompt ends where an answer begins, as its echo."""
    fields = {"max_tokens": 500} | fields
    messages = [{"role": "user", "content": text + END}]
    return client.chat.completions.create(model="echo", messages=messages, **fields)
