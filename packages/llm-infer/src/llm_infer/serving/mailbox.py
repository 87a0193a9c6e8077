"""From the thread that computes to the event loop that sends: what is new, all of it at a time."""

import asyncio
import threading
from collections.abc import Iterable, Sequence

from llm_infer.openai_api.answers import Piece, Usage

_JOIN_AT = 64


class SlowReaderError(Exception):
    """More probabilities wait to be read than memory is given for."""


class Mailbox:
    """The news of the answers to one request.

    Pieces that wait are joined, so a reader that never comes costs no more than the text itself.
    Probabilities cannot be joined: beyond `MAX_UNREAD_TOKENS` of them `put` raises.
    """

    MAX_UNREAD_TOKENS = 4096

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._pieces: list[Piece] = []
        self._num_unread_tokens = 0
        # Joined when there are so many, which leaves one for each answer.
        self._join_at = _JOIN_AT
        self._arrived = asyncio.Event()
        self.usage: Usage | None = None
        """Counts, once every answer has ended."""
        self.error: Exception | None = None
        """What made the computation fail; nothing follows."""

    def put(self, piece: Piece, *, is_at_once: bool = False) -> None:
        """Add news, for the computing thread; the reader hears of it with `wake`.

        What comes all `is_at_once`, however fast its reader, is not held against it.
        """
        with self._lock:
            self._pieces.append(piece)
            self._num_unread_tokens += 0 if is_at_once else len(piece.tokens)
            if self._num_unread_tokens > self.MAX_UNREAD_TOKENS:
                raise SlowReaderError(f"{self._num_unread_tokens} tokens wait to be read")
            if len(self._pieces) >= self._join_at:
                self._pieces = joined(self._pieces)
                self._join_at = len(self._pieces) + _JOIN_AT

    async def get(self) -> list[Piece]:
        """All that is new, at least one piece; empty when all answers have ended.

        Raises what made the computation fail, after everything before it was given.
        """
        while not (pieces := self._take()):
            if self.error is not None:
                raise self.error
            if self.usage is not None:
                # The last pieces came before the counts, maybe after the look above.
                return self._take()
            await self._arrived.wait()
            self._arrived.clear()
        return pieces

    def _take(self) -> list[Piece]:
        with self._lock:
            pieces, self._pieces, self._num_unread_tokens = self._pieces, [], 0
        return pieces

    @staticmethod
    def wake(mailboxes: Iterable["Mailbox"]) -> None:
        """Tell the readers; one call into each loop, however many have news."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Mailbox]] = {}
        for one in mailboxes:
            by_loop.setdefault(one._loop, []).append(one)
        for loop, group in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_set_all, group)

    def arrived(self) -> None:
        """Let the reader look, from within the loop."""
        self._arrived.set()


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same news with one piece an answer."""
    by_answer: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_answer.setdefault(piece.index, []).append(piece)
    return [
        Piece(
            index=index,
            text="".join(piece.text for piece in group),
            reasoning="".join(piece.reasoning for piece in group),
            tokens=tuple(token for piece in group for token in piece.tokens),
            prompt_tokens=tuple(token for piece in group for token in piece.prompt_tokens),
            calls=tuple(call for piece in group for call in piece.calls),
            finish=group[-1].finish,
            score=group[-1].score,
        )
        for index, group in by_answer.items()
    ]


def _set_all(mailboxes: Iterable[Mailbox]) -> None:
    for one in mailboxes:
        one.arrived()
