"""Text from tokens as they come, never splitting a character.

A character of several bytes may be spread over tokens. Its half decodes to U+FFFD, so text that
ends in one waits for the next token. Tokens are decoded together with those before them, since
tokenizers treat the start of a text in their own way (a leading space, for one). After Hugging
Face text-generation-inference, `Model.decode_token`.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns tokens into text; all pieces joined are the decoded tokens."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        # Tokens since two emissions ago: `_pending[:_num_shown]` have been shown already.
        self._pending: list[int] = []
        self._num_shown = 0

    def push(self, token: int) -> str:
        """The text this token completes; empty while a character is unfinished."""
        self._pending.append(token)
        text = self._unseen()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._pending = self._pending[self._num_shown :]
        self._num_shown = len(self._pending)
        return text

    @property
    def num_held(self) -> int:
        """Whole characters that wait for the unfinished one behind them."""
        return len(self._unseen().rstrip(_REPLACEMENT))

    def flush(self) -> str:
        """What is left at the end, unfinished characters as U+FFFD."""
        text = self._unseen()
        self._pending, self._num_shown = [], 0
        return text

    def _unseen(self) -> str:
        shown = self._decode(self._pending[: self._num_shown])
        return self._decode(self._pending)[len(shown) :]
