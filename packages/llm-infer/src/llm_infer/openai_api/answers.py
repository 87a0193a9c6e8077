"""Answers of OpenAI's API: whole, or as the chunks of a stream.

Shapes: https://platform.openai.com/docs/api-reference/chat/object and .../chat/streaming.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from llm_infer.stream import FinishReason

Json = dict[str, object]
ApiFinish = Literal["stop", "length", "tool_calls"]
PieceFinish = FinishReason | Literal["calls"]
"""Why an answer ended; `calls` where it could have gone on, but for the calls in it."""

_FINISH: dict[PieceFinish, ApiFinish] = {
    "end": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
    "calls": "tool_calls",
}


@dataclass(frozen=True, slots=True)
class TokenText:
    """A chosen token as text, its log-probability, and those of the likeliest in its place."""

    text: str
    logprob: float | None
    """None for the first of a text."""
    top: tuple[tuple[str, float], ...] = ()
    offset: int = 0
    """Characters of the answer before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalled:
    """One call in an answer, as text."""

    index: int
    """Its place among the calls of the answer."""
    id: str
    name: str
    arguments: str
    """A JSON object."""

    def body(self) -> Json:
        """As messages have it; the chunks of a stream say the index besides."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What is new in one answer; `tokens` only where probabilities were asked for."""

    index: int
    text: str = ""
    reasoning: str = ""
    """What the model thinks, where its format tells that from its words."""
    tokens: tuple[TokenText, ...] = ()
    prompt_tokens: tuple[TokenText, ...] = ()
    """Of the prompt, which comes at once, before all others."""
    calls: tuple[ToolCalled, ...] = ()
    finish: PieceFinish | None = None
    score: float | None = None
    """Of a text that a beam search found, with its last piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens counted: of the prompts, and of all answers together."""

    num_prompt: int
    num_new: int
    num_cached: int = 0
    """Those of the prompts that were found in a cache."""
    num_reasoning: int | None = None
    """Those of the answers that belong to thoughts; None where none are looked for."""

    def body(self) -> Json:
        """As the API writes it."""
        fields: Json = {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_new,
            "total_tokens": self.num_prompt + self.num_new,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
        }
        if self.num_reasoning is not None:
            fields["completion_tokens_details"] = {"reasoning_tokens": self.num_reasoning}
        return fields


@dataclass(slots=True, kw_only=True)
class Collected:
    """One answer put together from its pieces."""

    index: int
    text: str = ""
    reasoning: str = ""
    tokens: list[TokenText] = field(default_factory=list[TokenText])
    calls: list[ToolCalled] = field(default_factory=list[ToolCalled])
    finish: PieceFinish | None = None
    score: float | None = None

    def add(self, piece: Piece) -> None:
        """Append what is new."""
        self.text += piece.text
        self.reasoning += piece.reasoning
        self.tokens += (*piece.prompt_tokens, *piece.tokens)
        self.calls += piece.calls
        self.finish = piece.finish or self.finish
        self.score = piece.score if self.score is None else self.score


class Format(Protocol):
    """How one of the two endpoints writes."""

    def whole(self, answers: Sequence[Collected], usage: Usage) -> Json:
        """The answer to a request that is not streamed."""
        ...

    def opening(self, index: int) -> Json | None:
        """What a stream says of an answer before its first piece."""
        ...

    def chunk(self, piece: Piece) -> Json:
        """One piece of a stream."""
        ...

    def usage(self, usage: Usage) -> Json:
        """The last chunk of a stream, where asked for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What every chunk of one answer repeats."""

    id: str
    created: int
    model: str
    has_logprobs: bool
    includes_usage: bool

    def wrap(self, kind: str, choices: Sequence[Json], usage: Usage | None = None) -> Json:
        """A chunk or a whole answer around its choices."""
        fields: Json = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }
        if usage is not None or self.includes_usage:
            fields["usage"] = None if usage is None else usage.body()
        return fields


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """`/v1/chat/completions`."""

    envelope: Envelope

    def whole(self, answers: Sequence[Collected], usage: Usage) -> Json:
        """`chat.completion`."""
        choices: list[Json] = [
            {
                "index": one.index,
                "message": _message(one),
                "logprobs": self._logprobs(one.tokens),
                "finish_reason": one.finish and _FINISH[one.finish],
                **_scored(one.score),
            }
            for one in answers
        ]
        return self.envelope.wrap("chat.completion", choices, usage)

    def opening(self, index: int) -> Json | None:
        """Tells whose turn it is."""
        return self._chunk(Piece(index=index), {"role": "assistant", "content": ""}, None)

    def chunk(self, piece: Piece) -> Json:
        """`chat.completion.chunk`."""
        has_text = piece.text or (piece.tokens and not (piece.calls or piece.reasoning))
        delta: Json = {"content": piece.text} if has_text else {}
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if piece.calls:
            delta["tool_calls"] = [{"index": one.index, **one.body()} for one in piece.calls]
        return self._chunk(piece, delta, self._logprobs(piece.tokens))

    def usage(self, usage: Usage) -> Json:
        """A chunk without choices."""
        return self.envelope.wrap("chat.completion.chunk", [], usage)

    def _chunk(self, piece: Piece, delta: Json, logprobs: Json | None) -> Json:
        choice: Json = {
            "index": piece.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": piece.finish and _FINISH[piece.finish],
            **_scored(piece.score),
        }
        return self.envelope.wrap("chat.completion.chunk", [choice])

    def _logprobs(self, tokens: Sequence[TokenText]) -> Json | None:
        if not self.envelope.has_logprobs:
            return None
        return {"content": token_logprobs(tokens), "refusal": None}


@dataclass(frozen=True, slots=True)
class CompletionFormat:
    """`/v1/completions`."""

    envelope: Envelope

    def whole(self, answers: Sequence[Collected], usage: Usage) -> Json:
        """`text_completion`."""
        choices = [self._choice(one, one.tokens) for one in answers]
        return self.envelope.wrap("text_completion", choices, usage)

    def opening(self, index: int) -> Json | None:  # noqa: ARG002  a Format's signature
        """Nothing: a text has no roles."""
        return None

    def chunk(self, piece: Piece) -> Json:
        """`text_completion` too."""
        tokens = (*piece.prompt_tokens, *piece.tokens)
        return self.envelope.wrap("text_completion", [self._choice(piece, tokens)])

    def usage(self, usage: Usage) -> Json:
        """A chunk without choices."""
        return self.envelope.wrap("text_completion", [], usage)

    def _choice(self, one: Piece | Collected, tokens: Sequence[TokenText]) -> Json:
        return {
            "index": one.index,
            "text": one.text,
            "logprobs": self._logprobs(tokens),
            "finish_reason": one.finish and _FINISH[one.finish],
            **_scored(one.score),
        }

    def _logprobs(self, tokens: Sequence[TokenText]) -> Json | None:
        if not self.envelope.has_logprobs:
            return None
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            # Of tokens that are written alike the likeliest counts: it comes last.
            "top_logprobs": [dict(reversed(token.top)) or None for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }


def token_logprobs(tokens: Sequence[TokenText]) -> list[Json]:
    """As chat completions have them."""
    return [
        {
            **_chat_token(token.text, token.logprob),
            "top_logprobs": [_chat_token(*one) for one in token.top],
        }
        for token in tokens
    ]


def _scored(score: float | None) -> Json:
    """What OpenAI's API has no field for: only texts of a search have it."""
    return {} if score is None else {"score": score}


def _message(answer: Collected) -> Json:
    calls = [one.body() for one in answer.calls]
    # OpenAI's content beside calls is null where there is none.
    content = answer.text or None if calls else answer.text
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    return message | ({"tool_calls": calls} if calls else {})


def _chat_token(text: str, logprob: float | None) -> Json:
    # A part of a character decodes to U+FFFD, whose bytes are not the token's.
    is_whole = "\ufffd" not in text
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if is_whole else None}
