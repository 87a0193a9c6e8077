"""An answer's text as its tokens come, cut at stop strings, with each token's probability."""

import secrets
import string
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_infer.detokenize import Decode, Detokenizer
from llm_infer.engine import Event, TokenLogprob
from llm_infer.openai_api.answers import Piece, PieceFinish, TokenText, ToolCalled
from llm_infer.stopping import StopMatcher
from llm_infer.stream import FinishReason
from llm_infer.thinking import Thought
from llm_infer.tools.answers import AnswerReading, Part
from llm_infer.tools.calls import Call

if TYPE_CHECKING:
    # With pydantic, which takes a while to import.
    from llm_infer.openai_api.jobs import Echo

# Mistral's templates want nine letters or digits; the others take anything.
_NO_LOGPROB = TokenLogprob(None)
_ID_LETTERS, _ID_LENGTH = string.ascii_letters + string.digits, 9


class Assembler:
    """Push tokens, send the pieces; `finish` when there are no more.

    A token's probability goes out when all the text up to its end is sent, so that tokens held
    back with what may become a stop string are not told of before their text. Text and calls of
    tools are told apart only after that, so tokens of calls have probabilities too.
    """

    def __init__(
        self,
        index: int,
        decode: Decode,
        stops: Sequence[str],
        *,
        reading: AnswerReading | None = None,
        echo: "Echo | None" = None,
        is_empty: bool = False,
    ) -> None:
        """Text is all there is unless `reading` says how thoughts and calls are found.

        `echo` is told before it, by `echoed`; an answer that `is_empty` ends without its token.
        """
        self.num_tokens = self.num_reasoning = 0
        self.is_read = reading is not None
        """Whether thoughts are looked for, whose tokens are `num_reasoning`."""
        self._index, self._decode = index, decode
        self._detokenizer, self._matcher = Detokenizer(decode), StopMatcher(stops)
        self._echo, self._is_empty, self._is_ended = echo, is_empty, False
        # Of the text, the echoed one included.
        self._num_decoded = self._num_sent = 0 if echo is None else len(echo.text)
        # Tokens not told of yet, each with where its text starts and ends in the answer.
        self._untold: deque[tuple[TokenText, int]] = deque()
        self._splitter = None if reading is None else reading.splitter()
        self._most_calls = 1 if reading is not None and reading.is_single else None
        self._num_calls = 0

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string is complete, or the one call; no token after it counts."""
        is_called = self._num_calls == self._most_calls
        return self._matcher.is_stopped or is_called or self._is_ended

    def echoed(self, event: Event) -> Piece | None:
        """The prompt with its tokens' probabilities, which the first event brings."""
        echo, self._echo = self._echo, None
        if echo is None:
            return None
        detokenizer, offset = Detokenizer(self._decode), 0
        told: list[TokenText] = []
        for token, one in zip(echo.tokens, (_NO_LOGPROB, *event.prompt_logprobs), strict=True):
            told.append(self._token_text(token, one, offset + detokenizer.num_held))
            offset += len(detokenizer.push(token))
        return Piece(index=self._index, text=echo.text, prompt_tokens=tuple(told))

    def push(self, token: int, event: Event) -> Piece:
        """What this token, which the event brought, adds to the answer; maybe nothing yet."""
        if self._is_empty:
            self._is_ended = True
            return Piece(index=self._index, finish="length")
        self.num_tokens += 1
        start = self._num_decoded
        if event.logprob is not None:
            start += self._detokenizer.num_held
        text = self._detokenizer.push(token)
        self._num_decoded += len(text)
        if event.logprob is not None:
            told = self._token_text(token, TokenLogprob(event.logprob, event.top_logprobs), start)
            self._untold.append((told, self._num_decoded))
        sent = self._matcher.push(text)
        self._num_sent += len(sent)
        was_within = self._is_within_thought
        piece = self._piece(sent, "stop" if self._matcher.is_stopped else None)
        # The token that closes a thought belongs to it.
        self.num_reasoning += was_within or self._is_within_thought
        return replace(piece, score=event.score) if piece.finish else piece

    def finish(self, reason: FinishReason, event: Event | None = None) -> Piece:
        """What was held back, and why the answer ended; the end token, where the event tells it."""
        if self._is_empty:
            return Piece(index=self._index, finish="length")
        rest = self._detokenizer.flush()
        self._num_decoded += len(rest)
        text = self._matcher.push(rest)
        if self._matcher.is_stopped:
            reason = "stop"
        text += self._matcher.flush()
        self._num_sent += len(text)
        if event is not None and event.ended_by is not None and reason == "end":
            told = self._token_text(*event.ended_by, self._num_sent)
            self._untold.append((told, self._num_sent))
        piece = self._piece(text, reason)
        return piece if event is None else replace(piece, score=event.score)

    @property
    def _is_within_thought(self) -> bool:
        return self._splitter is not None and self._splitter.is_within_thought

    def _token_text(self, token: int, found: TokenLogprob, offset: int) -> TokenText:
        top = tuple((self._decode([one]), value) for one, value in found.top)
        return TokenText(self._decode([token]), found.logprob, top, offset)

    def _piece(self, text: str, reason: FinishReason | None) -> Piece:
        tokens = self._told(reason)
        if self._splitter is None:
            return Piece(index=self._index, text=text, tokens=tokens, finish=reason)
        parts: list[Part] = [
            *self._splitter.push(text),
            *(self._splitter.flush() if reason else ()),
        ]
        calls = self._called(part for part in parts if isinstance(part, Call))
        finish: PieceFinish | None = reason
        if self._num_calls and (reason in ("end", "stop") or self.is_stopped):
            finish = "calls"
        text = "".join(part for part in parts if isinstance(part, str))
        reasoning = "".join(part.text for part in parts if isinstance(part, Thought))
        return Piece(
            index=self._index,
            text=text,
            reasoning=reasoning,
            tokens=tokens,
            calls=calls,
            finish=finish,
        )

    def _called(self, calls: Iterable[Call]) -> tuple[ToolCalled, ...]:
        found: list[ToolCalled] = []
        for call in calls:
            if self._num_calls != self._most_calls:
                made = ToolCalled(
                    index=self._num_calls, id=_new_id(), name=call.name, arguments=call.arguments
                )
                found.append(made)
                self._num_calls += 1
        return tuple(found)

    def _told(self, finish: FinishReason | None) -> tuple[TokenText, ...]:
        told: list[TokenText] = []
        while self._untold and self._untold[0][1] <= self._num_sent:
            told.append(self._untold.popleft()[0])
        # A token that a stop string cuts in two belongs to the answer with its first half.
        if finish == "stop" and self._untold and self._untold[0][0].offset < self._num_sent:
            told.append(self._untold.popleft()[0])
        return tuple(told)


def _new_id() -> str:
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
