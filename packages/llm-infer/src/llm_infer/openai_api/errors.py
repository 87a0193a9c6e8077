"""Errors as OpenAI's API writes them: a status, and a JSON object that says what was wrong.

Shape and codes: https://platform.openai.com/docs/guides/error-codes
"""

from dataclasses import dataclass


# Not frozen: Python itself writes the traceback of an exception.
@dataclass(kw_only=True, eq=False)
class ApiError(Exception):
    """A request that is answered with an error; `retry_after_s` tells the client when to return."""

    status: int
    message: str
    kind: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None

    def body(self) -> dict[str, object]:
        """The JSON of the answer."""
        fields = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": fields}

    def __str__(self) -> str:
        return self.message


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request cannot be answered as it is."""
    kind = "invalid_request_error"
    return ApiError(status=400, message=message, kind=kind, param=param, code=code)


def too_long(*, num_prompt_tokens: int, context_length: int, param: str) -> ApiError:
    """400: the prompt leaves no room for an answer."""
    return invalid(
        f"the prompt has {num_prompt_tokens} tokens; the model's context of {context_length} "
        "leaves no room for an answer",
        param=param,
        code="context_length_exceeded",
    )


def unauthorized() -> ApiError:
    """401: no key, or not the server's."""
    return ApiError(
        status=401,
        message="want the header 'Authorization: Bearer KEY' with this server's key",
        kind="invalid_request_error",
        code="invalid_api_key",
    )


def unknown_model(found: str, *, served: str) -> ApiError:
    """404: another model than the one served."""
    return ApiError(
        status=404,
        message=f"model: found {found!r}; this server has {served!r}",
        kind="invalid_request_error",
        param="model",
        code="model_not_found",
    )


def unknown_route(method: str, path: str) -> ApiError:
    """404: nothing lives at this address."""
    return ApiError(status=404, message=f"no route {method} {path}", kind="invalid_request_error")


def body_too_large(limit_bytes: int) -> ApiError:
    """413: more than any prompt that fits the context."""
    return ApiError(
        status=413,
        message=f"the body is larger than {limit_bytes} bytes, which no prompt of this model needs",
        kind="invalid_request_error",
        code="request_too_large",
    )


def not_json(found: str) -> ApiError:
    """415: a body of another type, such as a form of another web page."""
    return ApiError(
        status=415,
        message=f"Content-Type: found {found or 'nothing'}, want application/json",
        kind="invalid_request_error",
    )


def overloaded(*, limit: int, retry_after_s: int) -> ApiError:
    """429: as many answers wait as the server lets wait."""
    return ApiError(
        status=429,
        message=f"the server is busy: {limit} answers are open, its limit; try again later",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_s=retry_after_s,
    )


def ending() -> ApiError:
    """503: the server is told to end, and cannot wait for the answer."""
    return ApiError(
        status=503,
        message="the server ends before this answer does",
        kind="server_error",
        code="server_ends",
    )


def broken_model(reason: str) -> ApiError:
    """500: what the model computed is nothing to make text of."""
    return ApiError(status=500, message=reason, kind="server_error", code="broken_model")


def failed() -> ApiError:
    """500: a defect of ours; the server's log has it."""
    return ApiError(
        status=500,
        message="the server failed to answer; its log says why",
        kind="server_error",
        code="internal_error",
    )
