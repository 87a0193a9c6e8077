"""A generation as a stream of text, with what is known when it ends."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Literal

from llm_infer.detokenize import Decode, Detokenizer
from llm_infer.sampling import Sampling
from llm_infer.stopping import StopMatcher

FinishReason = Literal["end", "stop", "length", "context"]
"""The model's end token, a stop string, max_new_tokens, or a full context window."""


class TextStream:
    """Iterate for pieces of text; afterwards `text`, `num_tokens` and `finish_reason` are final."""

    def __init__(
        self,
        tokens: Generator[int, None, None],
        decode: Decode,
        sampling: Sampling,
        *,
        room: int,
        clock: Callable[[], float],
    ) -> None:
        """`room` is how many tokens the context has left; `clock` counts seconds."""
        self.text = ""
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.first_token_s: float | None = None
        self._last_token_s = self._start_s = clock()
        self._tokens, self._decode, self._sampling = tokens, decode, sampling
        self._room, self._clock = room, clock

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces():
            if piece:
                self.text += piece
                yield piece

    @property
    def tokens_per_s(self) -> float | None:
        """Rate after the first token, whose time is mostly the prompt's."""
        if self.first_token_s is None or self.num_tokens < 2:
            return None
        elapsed = self._last_token_s - self._start_s - self.first_token_s
        return (self.num_tokens - 1) / elapsed if elapsed > 0 else None

    def _pieces(self) -> Iterator[str]:
        detokenizer, matcher = Detokenizer(self._decode), StopMatcher(self._sampling.stop)
        with closing(self._tokens):
            for token in self._tokens:
                self._count()
                yield matcher.push(detokenizer.push(token))
                if matcher.is_stopped:
                    break
        if not matcher.is_stopped:
            yield matcher.push(detokenizer.flush())
        yield matcher.flush()
        self.finish_reason = self._reason(is_stopped=matcher.is_stopped)

    def _count(self) -> None:
        self.num_tokens += 1
        self._last_token_s = self._clock()
        if self.first_token_s is None:
            self.first_token_s = self._last_token_s - self._start_s

    def _reason(self, *, is_stopped: bool) -> FinishReason:
        if is_stopped:
            return "stop"
        if self.num_tokens >= self._sampling.max_new_tokens:
            return "length"
        return "context" if self.num_tokens >= self._room else "end"
