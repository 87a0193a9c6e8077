"""From the thread that computes to the event loop that sends: what is new, all of it at a time."""

import asyncio
from collections import deque
from collections.abc import Iterable

from llm_infer.openai_api.answers import Piece, Usage


class Mailbox:
    """The news of the answers to one request.

    Bounded by what it holds: no more than the answers' tokens, and the number of open answers is
    limited. A reader that falls behind gets many pieces at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: deque[Piece] = deque()
        self._arrived = asyncio.Event()
        self.usage: Usage | None = None
        """Counts, once every answer has ended."""
        self.error: Exception | None = None
        """What made the computation fail; nothing follows."""

    def put(self, piece: Piece) -> None:
        """Add news, for the computing thread; the reader hears of it with `wake`."""
        self._pieces.append(piece)

    async def get(self) -> list[Piece]:
        """All that is new, at least one piece; empty when all answers have ended.

        Raises what made the computation fail, after everything before it was given.
        """
        while not self._pieces:
            if self.error is not None:
                raise self.error
            if self.usage is not None:
                return []
            self._arrived.clear()
            # The thread may have put between the check and the clearing.
            if not (self._pieces or self.error or self.usage):
                await self._arrived.wait()
        return [self._pieces.popleft() for _ in range(len(self._pieces))]

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


def _set_all(mailboxes: Iterable[Mailbox]) -> None:
    for one in mailboxes:
        one.arrived()
