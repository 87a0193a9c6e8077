"""HTTP to a server with OpenAI's API: whole documents, and streams of events."""

import http.client
import json
import ssl
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from llm_infer.edge.options import REMOTE
from llm_infer.errors import InferError
from llm_infer.openai_api.outgoing import error_message

_TIMEOUT_S = 600.0
_MAX_TRIES = 8
_BUSY = (429, 503)
_DEFAULT_WAIT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where to ask; `path` ends in `/v1` for most."""

    is_secure: bool
    host: str
    port: int | None
    path: str
    key: str | None

    @property
    def name(self) -> str:
        """For messages."""
        port = "" if self.port is None else f":{self.port}"
        return f"{'https' if self.is_secure else 'http'}://{self.host}{port}{self.path}"

    def get(self, path: str) -> object:
        """A JSON document."""
        with closing(self._connect()) as connection:
            response = self._ask(connection, "GET", path, None)
            return self._json(response.read(), path)

    def stream(self, path: str, body: bytes) -> Generator[str, None, None]:
        """The data of each event that answers a request. A busy server is asked again."""
        for attempt in range(1, _MAX_TRIES + 1):
            with closing(self._connect()) as connection:
                try:
                    response = self._ask(connection, "POST", path, body)
                except _BusyError as busy:
                    if attempt == _MAX_TRIES:
                        raise InferError(f"{self.name}: {busy}, {_MAX_TRIES} times") from None
                    time.sleep(busy.wait_s)
                    continue
                yield from self._events(response)
                return

    def _connect(self) -> http.client.HTTPConnection:
        if self.is_secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                self.host, self.port, timeout=_TIMEOUT_S, context=context
            )
        return http.client.HTTPConnection(self.host, self.port, timeout=_TIMEOUT_S)

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, */*"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.request(method, self.path + path, body, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise InferError(f"{self.name}: cannot be reached: {error}") from error
        if response.status in _BUSY:
            raise _BusyError(response)
        if response.status != http.client.OK:
            said = response.read(1 << 16)
            try:
                message = error_message(json.loads(said))
            except ValueError:
                message = said[:200].decode("utf-8", "replace") or response.reason
            raise InferError(f"{self.name}{path}: status {response.status}: {message}")
        return response

    def _events(self, response: http.client.HTTPResponse) -> Iterator[str]:
        is_done = False
        try:
            for line in response:
                if line.startswith(b"data:"):
                    data = line[5:].strip().decode("utf-8")
                    if data == "[DONE]":
                        is_done = True
                        return
                    yield data
        except (OSError, http.client.HTTPException) as error:
            raise InferError(f"{self.name}: the connection broke: {error!r}") from error
        if not is_done:
            raise InferError(f"{self.name}: the stream ended without its last event, [DONE]")

    def _json(self, data: bytes, path: str) -> object:
        try:
            return json.loads(data)
        except ValueError:
            raise InferError(f"{self.name}{path}: sent {data[:80]!r}, want JSON") from None


class _BusyError(Exception):
    """The server has too much to do; it says for how long, in `Retry-After`."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        super().__init__(f"status {response.status}, too busy")
        wait = response.headers.get("Retry-After", "")
        self.wait_s = float(wait) if wait.isdecimal() else _DEFAULT_WAIT_S


def server_at(engine: str, *, key: str | None) -> Server:
    """The server that `--engine openai:URL` names; `key` is shown to it."""
    url = engine.removeprefix(REMOTE)
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise InferError(f"--engine {engine}: the port is no number below 65536") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InferError(f"--engine {engine}: want openai:http://HOST:PORT/v1 or openai:https://…")
    return Server(
        is_secure=parts.scheme == "https",
        host=parts.hostname,
        port=port,
        # Without a path, that of OpenAI.
        path=parts.path.rstrip("/") or "/v1",
        key=key,
    )
