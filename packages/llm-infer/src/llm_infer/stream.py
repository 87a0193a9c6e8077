"""A generation as text: built token by token, or as a stream with what is known when it ends."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Literal

from llm_infer.detokenize import Decode, Detokenizer
from llm_infer.sampling import Sampling
from llm_infer.stopping import StopMatcher

FinishReason = Literal["end", "stop", "length", "context"]
"""The model's end token, a stop string, max_new_tokens, or a full context window."""


class TextBuilder:
    """The text of one answer, from its tokens as they come, up to a stop string."""

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self.text = ""
        self.num_tokens = 0
        self._detokenizer, self._matcher = Detokenizer(decode), StopMatcher(stops)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was met; no more tokens are wanted then."""
        return self._matcher.is_stopped

    def push(self, token: int) -> str:
        """The piece of text that this token makes certain; may be empty."""
        self.num_tokens += 1
        return self._added(self._matcher.push(self._detokenizer.push(token)))

    def finish(self) -> str:
        """What was held back, now that no more tokens come."""
        rest = "" if self.is_stopped else self._matcher.push(self._detokenizer.flush())
        return self._added(rest + self._matcher.flush())

    def _added(self, piece: str) -> str:
        self.text += piece
        return piece


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
        num_prompt_tokens: int | None = None,
    ) -> None:
        """`room` is how many tokens the context has left; `clock` counts seconds."""
        self.num_prompt_tokens = num_prompt_tokens
        self.finish_reason: FinishReason | None = None
        self.first_token_s: float | None = None
        self._last_token_s = self._start_s = clock()
        self._tokens, self._sampling = tokens, sampling
        self._built = TextBuilder(decode, sampling.stop)
        self._room, self._clock = room, clock

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces():
            if piece:
                yield piece

    def parts(self) -> Iterator[str]:
        """The same: thoughts are within the text."""
        return iter(self)

    @property
    def text(self) -> str:
        """What has come so far."""
        return self._built.text

    @property
    def num_tokens(self) -> int:
        """Tokens that have come so far."""
        return self._built.num_tokens

    @property
    def tokens_per_s(self) -> float | None:
        """Rate after the first token, whose time is mostly the prompt's.

        A beam search gives all tokens at its end: its rate is over the whole time.
        """
        if self.first_token_s is None or self.num_tokens < 2:
            return None
        if self._sampling.beams is not None:
            return self.num_tokens / self.first_token_s if self.first_token_s > 0 else None
        elapsed = self._last_token_s - self._start_s - self.first_token_s
        return (self.num_tokens - 1) / elapsed if elapsed > 0 else None

    def _pieces(self) -> Iterator[str]:
        with closing(self._tokens):
            for token in self._tokens:
                self._note_time()
                yield self._built.push(token)
                if self._built.is_stopped:
                    break
        yield self._built.finish()
        self.finish_reason = self._reason(is_stopped=self._built.is_stopped)

    def _note_time(self) -> None:
        self._last_token_s = self._clock()
        if self.first_token_s is None:
            self.first_token_s = self._last_token_s - self._start_s

    def _reason(self, *, is_stopped: bool) -> FinishReason:
        if is_stopped:
            return "stop"
        if self.num_tokens >= self._sampling.max_new_tokens:
            return "length"
        return "context" if self.num_tokens >= self._room else "end"
