"""Stop strings in streamed text, wherever its pieces break."""

from collections.abc import Sequence


class StopMatcher:
    """Passes text on until a stop string is complete; holds back what may become one.

    Where two stop strings overlap, the one that is complete first wins, then the longer one, so
    the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False

    def push(self, piece: str) -> str:
        """The part of the text so far that is certainly not of a stop string."""
        if self.is_stopped:
            return ""
        text = self._held + piece
        found = [(start + len(s), start) for s in self._stops if (start := text.find(s)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = len(text) - self._num_possible(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _num_possible(self, text: str) -> int:
        """Length of the longest end of `text` that some stop string starts with."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stops):
                return length
        return 0
