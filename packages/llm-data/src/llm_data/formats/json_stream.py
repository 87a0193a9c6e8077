"""Values cut out of a stream of JSON: an array's elements, or objects one after another."""

import re
from collections.abc import Callable, Iterator

from llm_data.errors import FormatError

READ_BYTES = 1 << 20

_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(rb"[ \t\r\n]*+")
# A whole string, an unfinished one, or a character that changes depth.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\],]', re.DOTALL)
# A whole value of usual depth, brackets of either kind: one match instead of one for each bracket.
_USUAL_DEPTH = 4
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'


def _nested(depth: int) -> str:
    inner = f"|{_nested(depth - 1)}" if depth > 1 else ""
    return rf'[{{\[][^"{{}}\[\]]*+(?:(?:{_STRING}{inner})[^"{{}}\[\]]*+)*+[}}\]]'


_USUAL_VALUE = re.compile(_nested(_USUAL_DEPTH).encode(), re.DOTALL)
_USUAL_ELEMENT = re.compile(
    rf"(?:{_nested(_USUAL_DEPTH)}|{_STRING})[ \t\r\n]*+[,\]]".encode(), re.DOTALL
)
_OPEN = frozenset(b"{[")
_CLOSE = frozenset(b"}]")
_SEPARATORS = frozenset(b",]")


def split_values(read: Callable[[int], bytes], *, where: str) -> Iterator[bytes]:
    """Each top-level value's bytes, without parsing inside it.

    `[a, b]` yields its elements; `{…} {…}` yields the objects. Memory is that of one value.
    """
    cutter = _Cutter(read, where=where)
    cutter.skip_mark()
    first = cutter.peek()
    if first == b"[":
        cutter.skip(1)
        yield from cutter.elements()
    elif first:
        yield from cutter.objects()


class _Cutter:
    """A window over the stream that holds at least the value being cut, from `_at` on."""

    def __init__(self, read: Callable[[int], bytes], *, where: str) -> None:
        self._read = read
        self._where = where
        self._window = b""
        self._at = 0
        self._passed = 0

    def skip_mark(self) -> None:
        """Drop a byte order mark at the start of the stream."""
        while len(self._window) < len(_BOM) and self._grow():
            pass
        if self._window.startswith(_BOM):
            self.skip(len(_BOM))

    def peek(self) -> bytes:
        """The next byte that is not white space; empty at the end."""
        while True:
            space = _SPACE.match(self._window, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._window) or not self._grow():
                return self._window[self._at : self._at + 1]

    def skip(self, count: int) -> None:
        """Pass over bytes already seen."""
        self._at += count

    def elements(self) -> Iterator[bytes]:
        """The elements up to the closing bracket."""
        if self.peek() == b"]":
            self.skip(1)
            self._expect_end()
            return
        while True:
            element, closing = self._cut_element()
            yield element
            if closing == b"]":
                self._expect_end()
                return

    def objects(self) -> Iterator[bytes]:
        """Objects one after another up to the end of the stream."""
        while first := self.peek():
            if first != b"{":
                raise self._error(f"found {self._next()!r}, want an object or a list of objects")
            yield self._take(self._scan(element=False))

    def _cut_element(self) -> tuple[bytes, bytes]:
        if not self.peek():
            raise self._error("the file ends inside the list")
        cut = self._take(self._scan(element=True))
        element, closing = cut[:-1].rstrip(), cut[-1:]
        if not element:
            raise self._error(f"found {closing!r}, want a value")
        return element, closing

    def _scan(self, *, element: bool) -> int:
        """Length of the value at `_at`; with its separator if it is a list's element."""
        usual = (_USUAL_ELEMENT if element else _USUAL_VALUE).match(self._window, self._at)
        if usual:
            return usual.end() - self._at
        return self._scan_slowly(element=element)

    def _scan_slowly(self, *, element: bool) -> int:
        """The same bracket by bracket, for any depth and beyond the window."""
        depth = position = 0
        while True:
            match = _TOKEN.search(self._window, self._at + position)
            if match is None or match.group() == b'"':
                # Growing at least doubles the window, so re-reading a long string stays linear.
                position = (match.start() if match else len(self._window)) - self._at
                if not self._grow():
                    raise self._error("the file ends inside a value")
                continue
            position = match.end() - self._at
            byte = match.group()[0]
            if byte in _OPEN:
                depth += 1
            elif element and depth == 0 and byte in _SEPARATORS:
                return position
            elif byte in _CLOSE:
                depth -= 1
                if depth < 0:
                    raise self._error("found '}', want a value")
                if depth == 0 and not element:
                    return position

    def _take(self, count: int) -> bytes:
        value = self._window[self._at : self._at + count]
        self._at += count
        return value

    def _grow(self) -> bool:
        more = self._read(max(READ_BYTES, len(self._window) - self._at))
        self._passed += self._at
        self._window = self._window[self._at :] + more
        self._at = 0
        return bool(more)

    def _next(self) -> bytes:
        return self._window[self._at : self._at + 20]

    def _expect_end(self) -> None:
        if self.peek():
            raise self._error(f"found {self._next()!r} after the list")

    def _error(self, what: str) -> FormatError:
        return FormatError(f"{self._where}: byte {self._passed + self._at}: {what}")
