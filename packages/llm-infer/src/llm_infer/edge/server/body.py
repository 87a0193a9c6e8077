"""Bodies of requests: JSON only, of a bounded size, in a bounded time, a few at once."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from llm_infer.openai_api.errors import ApiError, body_too_large, ending, not_json

_READ_TIMEOUT_S = 30.0
_MAX_AT_ONCE = 32


class BodyReader:
    """Reads bodies; those beyond a few wait in the network, not in memory."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._places = asyncio.Semaphore(_MAX_AT_ONCE)

    async def read(self, request: Request) -> bytes:
        """The whole body; raises `ApiError` for one that is too large, slow or no JSON.

        So it does when the server ends meanwhile.
        """
        kind = request.headers.get("content-type", "")
        if kind.split(";")[0].strip().lower() != "application/json":
            raise not_json(kind)
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise body_too_large(self._max_bytes)
        async with self._places:
            try:
                async with asyncio.timeout(_READ_TIMEOUT_S):
                    return await self._collect(request)
            except TimeoutError:
                raise _unread(f"the body did not come within {_READ_TIMEOUT_S:.0f} s") from None
            except asyncio.CancelledError:
                raise ending() from None
            except ClientDisconnect:
                raise _unread("the client left") from None

    async def _collect(self, request: Request) -> bytes:
        parts: list[bytes] = []
        size_bytes = 0
        async for part in request.stream():
            size_bytes += len(part)
            if size_bytes > self._max_bytes:
                raise body_too_large(self._max_bytes)
            parts.append(part)
        return b"".join(parts)


def _unread(message: str) -> ApiError:
    return ApiError(status=408, message=message, kind="invalid_request_error")
