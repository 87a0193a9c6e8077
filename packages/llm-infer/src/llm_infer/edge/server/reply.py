"""Responses that follow a computation: cancelled when the client leaves or stops reading."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from llm_infer.openai_api.answers import Collected, Format, Json, Piece, Usage
from llm_infer.openai_api.errors import ApiError, ending, failed
from llm_infer.serving.runner import Ticket

_log = logging.getLogger(__name__)
_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Or a reverse proxy may hold the stream back.
    (b"x-accel-buffering", b"no"),
]
CLIENT_LEFT = 499
"""nginx's status for a client that closed the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What is told of a response while it goes out."""

    first_piece: Callable[[], None]
    usage: Callable[[Usage], None]
    end: Callable[[int], None]
    """The last call, with the HTTP status; the ticket is closed then."""


def error_response(error: ApiError) -> JSONResponse:
    """An error as OpenAI writes it."""
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


class AnswerResponse(Response):
    """The pieces of a ticket, as one JSON object or as server-sent events."""

    def __init__(
        self,
        ticket: Ticket,
        form: Format,
        *,
        prefixes: Sequence[str],
        is_stream: bool,
        includes_usage: bool,
        send_timeout_s: float,
        watch: Watch,
    ) -> None:
        """`prefixes` are told before each answer: an echoed prompt, or nothing."""
        super().__init__()
        self._ticket, self._form, self._prefixes = ticket, form, prefixes
        self._is_stream, self._includes_usage = is_stream, includes_usage
        self._send_timeout_s, self._watch = send_timeout_s, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; ends early when the client is gone."""
        started: list[int] = []

        async def patient(message: Message) -> None:
            # Before Python 3.12 wait_for loses a cancellation that meets the end of a send.
            async with asyncio.timeout(self._send_timeout_s):
                await send(message)
            if message["type"] == "http.response.start":
                started.append(int(message["status"]))

        respond = self._stream if self._is_stream else self._whole
        status = CLIENT_LEFT
        try:
            if await _until_disconnect(receive, respond(scope, receive, patient)):
                status = started[0]
        except asyncio.CancelledError:
            # The server ends, and its grace is over: the last word, as far as it can be sent.
            await self._break_off(scope, receive, patient, has_started=bool(started))
            status = started[0]
        except TimeoutError:
            _log.warning("a client stopped reading for %.0f s: given up", self._send_timeout_s)
        finally:
            self._watch.end(status)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = [Collected(index=i, text=text) for i, text in enumerate(self._prefixes)]
        try:
            while pieces := await self._pieces():
                for piece in pieces:
                    answers[piece.index].add(piece)
        except Exception as error:  # noqa: BLE001  told to the client
            response = error_response(_as_api_error(error))
        else:
            response = JSONResponse(self._form.whole(answers, self._usage()))
        await response(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # Before the status is sent, so that what fails at once fails with its own.
            pieces = await self._pieces()
        except Exception as error:  # noqa: BLE001  told to the client
            await error_response(_as_api_error(error))(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
        for index, prefix in enumerate(self._prefixes):
            opening = self._form.opening(index)
            chunks = [] if opening is None else [opening]
            if prefix:
                chunks.append(self._form.chunk(Piece(index=index, text=prefix)))
            await _events(send, chunks)
        try:
            while pieces:
                await _events(send, [self._form.chunk(piece) for piece in pieces])
                pieces = await self._pieces()
        except (TimeoutError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  told to the client, whose stream has begun
            await _events(send, [_as_api_error(error).body()])
        else:
            usage = self._usage()
            await _events(send, [self._form.usage(usage)] if self._includes_usage else [])
        await _body(send, b"data: [DONE]\n\n", is_last=True)

    async def _break_off(
        self, scope: Scope, receive: Receive, send: Send, *, has_started: bool
    ) -> None:
        error = ending()
        if not has_started:
            await error_response(error)(scope, receive, send)
        elif self._is_stream:
            await _events(send, [error.body()])
            await _body(send, b"data: [DONE]\n\n", is_last=True)

    async def _pieces(self) -> list[Piece]:
        pieces = await self._ticket.mailbox.get()
        self._watch.first_piece()
        return pieces

    def _usage(self) -> Usage:
        usage = self._ticket.mailbox.usage
        assert usage is not None, "the mailbox ended without counts"
        self._watch.usage(usage)
        return usage


async def _until_disconnect(receive: Receive, work: Coroutine[None, None, None]) -> bool:
    """Whether the work was done before the client left; what it raised is raised."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _as_api_error(error: Exception) -> ApiError:
    """What the engine refused, or a defect."""
    if isinstance(error, ApiError):
        return error
    _log.error("an answer failed", exc_info=error)
    return failed()


async def _events(send: Send, chunks: Sequence[Json]) -> None:
    text = "".join(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks)
    if text:
        await _body(send, text.encode(), is_last=False)


async def _body(send: Send, data: bytes, *, is_last: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": not is_last})
