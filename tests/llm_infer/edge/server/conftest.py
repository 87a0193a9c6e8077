import pytest

from server_process import ECHO, served


@pytest.fixture(scope="session")
def echo():
    """A server whose answers are the prompt, again and again."""
    with served(ECHO) as server:
        yield server


@pytest.fixture(scope="session")
def client(echo):
    from openai import OpenAI

    with OpenAI(base_url=f"{echo.url}/v1", api_key="none", max_retries=0) as client:
        yield client
