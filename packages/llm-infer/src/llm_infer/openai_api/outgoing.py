"""The other side of the API: requests to a server, and what its stream of events says."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from llm_infer.engine import Message
from llm_infer.errors import InferError
from llm_infer.openai_api.answers import TokenText
from llm_infer.openai_api.told_logprobs import told_logprobs
from llm_infer.sampling import Sampling
from llm_infer.stream import FinishReason

_EXTRAS = ("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""Sent only where they differ from off: not every server knows them."""
_THOUGHTS = ("reasoning_content", "reasoning")
"""Names of thoughts in a delta: the older of vLLM and that of most others, and vLLM's newer."""
_OFF = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one event of a stream brings."""

    text: str = ""
    thought: str = ""
    """What a server tells apart from the text."""
    tokens: tuple[TokenText, ...] = ()
    """With their log-probabilities, where the server tells them."""
    finish: str | None = None
    num_prompt_tokens: int | None = None
    num_tokens: int | None = None


def completion_body(model: str, prompt: str | Sequence[int], sampling: Sampling) -> bytes:
    """For `POST /v1/completions`, streamed."""
    asked: dict[str, object] = {"prompt": prompt}
    if sampling.logprobs is not None:
        asked["logprobs"] = sampling.logprobs
    return _body(model, asked, sampling)


def chat_body(model: str, messages: Sequence[Message], sampling: Sampling) -> bytes:
    """For `POST /v1/chat/completions`, streamed."""
    return _body(model, {"messages": [dict(message) for message in messages]}, sampling)


def parse_event(data: str, *, where: str, num_top: int = 0) -> Delta:
    """What follows `data: ` in a stream; raises InferError for an error or anything else.

    Of each token's rivals the `num_top` likeliest are told.
    """
    try:
        document: object = json.loads(data)
    except ValueError:
        raise InferError(f"{where}: sent {data[:80]!r}, want JSON") from None
    event = _fields(document)
    if "error" in event:
        raise InferError(f"{where}: {error_message(document)}")
    choices = event.get("choices")
    choice = (
        _fields(cast("list[object]", choices)[0]) if isinstance(choices, list) and choices else {}
    )
    delta = _fields(choice.get("delta"))
    text = choice.get("text", delta.get("content"))
    thought = next((delta[name] for name in _THOUGHTS if delta.get(name)), "")
    try:
        tokens = told_logprobs(choice.get("logprobs"), num_top=num_top)
    except ValueError as error:
        raise InferError(f"{where}: logprobs: {error}") from None
    finish, usage = choice.get("finish_reason"), _fields(event.get("usage"))
    return Delta(
        text=text if isinstance(text, str) else "",
        thought=thought if isinstance(thought, str) else "",
        tokens=tokens,
        finish=finish if isinstance(finish, str) else None,
        num_prompt_tokens=_count(usage.get("prompt_tokens")),
        num_tokens=_count(usage.get("completion_tokens")),
    )


def finish_reason(found: str | None, sampling: Sampling) -> FinishReason | None:
    """OpenAI has one word for the model's end token and a stop string."""
    if found == "stop":
        return "stop" if sampling.stop else "end"
    return "length" if found == "length" else None


def error_message(document: object) -> str:
    """What an error says, in OpenAI's shape or near it."""
    error = _fields(document).get("error", document)
    message = _fields(error).get("message", error)
    return message if isinstance(message, str) else json.dumps(message)[:200]


def model_names(document: object) -> list[str]:
    """Those that `GET /v1/models` lists."""
    data = _fields(document).get("data")
    models = cast("list[object]", data) if isinstance(data, list) else []
    names = [_fields(one).get("id") for one in models]
    return [name for name in names if isinstance(name, str)]


def _body(model: str, asked: Mapping[str, object], sampling: Sampling) -> bytes:
    if sampling.beams is not None:
        raise InferError("beam search: OpenAI's API has none; the native engine does")
    fields: dict[str, object] = {
        "model": model,
        **asked,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
    }
    for name in _EXTRAS:
        if getattr(sampling, name) != getattr(_OFF, name):
            fields[name] = getattr(sampling, name)
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return json.dumps(fields).encode()


def _fields(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None
