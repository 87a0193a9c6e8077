"""An answer's text as its tokens come, cut at stop strings, with each token's probability."""

from collections import deque
from collections.abc import Sequence

from llm_infer.detokenize import Decode, Detokenizer
from llm_infer.engine import Event
from llm_infer.openai_api.answers import Piece, TokenText
from llm_infer.stopping import StopMatcher
from llm_infer.stream import FinishReason


class Assembler:
    """Push tokens, send the pieces; `finish` when there are no more.

    A token's probability goes out when all the text up to its end is sent, so that tokens held
    back with what may become a stop string are not told of before their text.
    """

    def __init__(self, index: int, decode: Decode, stops: Sequence[str]) -> None:
        self.num_tokens = 0
        self._index, self._decode = index, decode
        self._detokenizer, self._matcher = Detokenizer(decode), StopMatcher(stops)
        self._num_decoded = self._num_sent = 0
        # Tokens not told of yet, each with where its text starts and ends in the answer.
        self._untold: deque[tuple[TokenText, int]] = deque()

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string is complete; no token after it counts."""
        return self._matcher.is_stopped

    def push(self, token: int, event: Event) -> Piece:
        """What this token, which the event brought, adds to the answer; maybe nothing yet."""
        self.num_tokens += 1
        start = self._num_decoded
        text = self._detokenizer.push(token)
        self._num_decoded += len(text)
        if event.logprob is not None:
            top = tuple((self._decode([one]), value) for one, value in event.top_logprobs)
            told = TokenText(self._decode([token]), event.logprob, top, start)
            self._untold.append((told, self._num_decoded))
        sent = self._matcher.push(text)
        self._num_sent += len(sent)
        finish = "stop" if self._matcher.is_stopped else None
        return Piece(index=self._index, text=sent, tokens=self._told(finish), finish=finish)

    def finish(self, reason: FinishReason) -> Piece:
        """What was held back, and why the answer ended."""
        rest = self._detokenizer.flush()
        self._num_decoded += len(rest)
        text = self._matcher.push(rest)
        if self._matcher.is_stopped:
            reason = "stop"
        text += self._matcher.flush()
        self._num_sent += len(text)
        return Piece(index=self._index, text=text, tokens=self._told(reason), finish=reason)

    def _told(self, finish: FinishReason | None) -> tuple[TokenText, ...]:
        told: list[TokenText] = []
        while self._untold and self._untold[0][1] <= self._num_sent:
            told.append(self._untold.popleft()[0])
        # A token that a stop string cuts in two belongs to the answer with its first half.
        if finish == "stop" and self._untold and self._untold[0][0].offset < self._num_sent:
            told.append(self._untold.popleft()[0])
        return tuple(told)
