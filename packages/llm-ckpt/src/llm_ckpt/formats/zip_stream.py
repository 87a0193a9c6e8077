"""A zip written forward only, records stored as they are: PKWARE's APPNOTE 6.3.9.

What the standard library's zipfile would write, byte by byte. It is here because zipfile computes a
record's crc between one write and the next; a sink may do that in a thread of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import pack
from typing import Protocol

from llm_ckpt.errors import FormatError

_LIMIT = (1 << 31) - 1  # zipfile's, for sizes and offsets without zip64
_COUNT_LIMIT = (1 << 16) - 1
_VERSION, _VERSION_64 = 20, 45
_UNIX = 3
_SIZES_AFTER_DATA = 0x08
_DATE_1980 = 0x21
_MODE = 0o600 << 16
_ZIP64_BYTES, _FIELD_BYTES = 20, 4
LOCAL_HEADER_BYTES = 30  # before the name


class CheckedSink(Protocol):
    """Where a zip goes: written forward only, with the crc of some of what is written."""

    def write(self, data: bytes | bytearray | memoryview, *, is_checked: bool = False) -> int:
        """Append all of it; what is checked counts in the next `crc32`."""
        ...

    def crc32(self) -> int:
        """The crc of what was checked since the last call."""
        ...


@dataclass(frozen=True, slots=True)
class _Record:
    name: bytes
    extra: bytes
    offset: int
    size: int
    crc: int
    is_large: bool


class ZipStream:
    """A zip in the making; each record's data begins at a multiple of `align` bytes."""

    def __init__(self, sink: CheckedSink, *, align: int) -> None:
        self._sink, self._align = sink, align
        self._records: list[_Record] = []
        self._position = 0

    @contextmanager
    def record(self, name: str, size: int) -> Iterator[None]:
        """A record whose `size` bytes are given to `write` in the with block."""
        encoded, offset, is_large = name.encode("ascii"), self._position, size > _LIMIT
        extra = self._padding(len(encoded), is_large=is_large)
        zip64 = pack("<HHQQ", 1, 16, 0, 0) if is_large else b""
        sizes = (0xFFFFFFFF,) * 2 if is_large else (0, 0)
        version = _VERSION_64 if is_large else _VERSION
        facts = (version, _SIZES_AFTER_DATA, 0, 0, _DATE_1980, 0, *sizes)
        lengths = (len(encoded), len(extra) + len(zip64))
        self._put(pack("<4s5H3L2H", b"PK\x03\x04", *facts, *lengths) + encoded + extra + zip64)
        start = self._position
        yield
        if self._position - start != size:
            raise FormatError(f"record {name}: {self._position - start} bytes, want {size}")
        crc = self._sink.crc32()
        self._put(pack("<4sLQQ" if is_large else "<4sLLL", b"PK\x07\x08", crc, size, size))
        self._records.append(_Record(encoded, extra, offset, size, crc, is_large))

    def write(self, data: bytes | memoryview) -> None:
        """Data of the record."""
        self._position += self._sink.write(data, is_checked=True)

    def close(self) -> None:
        """Write the central directory."""
        start, count = self._position, len(self._records)
        for record in self._records:
            self._put(_directory_entry(record))
        end, size = self._position, self._position - start
        if count > _COUNT_LIMIT or start > _LIMIT or size > _LIMIT:
            facts = (44, _VERSION_64, _VERSION_64, 0, 0, count, count, size, start)
            self._put(pack("<4sQ2H2L4Q", b"PK\x06\x06", *facts))
            self._put(pack("<4sLQL", b"PK\x06\x07", 0, end, 1))
        count, size, start = min(count, 0xFFFF), min(size, 0xFFFFFFFF), min(start, 0xFFFFFFFF)
        self._put(pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, start, 0))

    def _padding(self, name_bytes: int, *, is_large: bool) -> bytes:
        """An extra field that pushes the data to its boundary, as torch.save's `FB` field does."""
        start = self._position + LOCAL_HEADER_BYTES + name_bytes + _FIELD_BYTES
        count = -(start + (_ZIP64_BYTES if is_large else 0)) % self._align
        return pack("<2sH", b"FB", count) + b"Z" * count

    def _put(self, data: bytes) -> None:
        self._position += self._sink.write(data)


def _directory_entry(record: _Record) -> bytes:
    large: list[int] = [record.size, record.size] if record.size > _LIMIT else []
    size = 0xFFFFFFFF if large else record.size
    offset = record.offset
    if offset > _LIMIT:
        large.append(offset)
        offset = 0xFFFFFFFF
    extra = record.extra
    if large:
        extra = pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) + extra
    version = _VERSION_64 if large else _VERSION
    facts = (version, _UNIX, version, 0, _SIZES_AFTER_DATA, 0, 0, _DATE_1980)
    sizes = (record.crc, size, size, len(record.name), len(extra), 0, 0, 0, _MODE, offset)
    return pack("<4s4B4H3L5H2L", b"PK\x01\x02", *facts, *sizes) + record.name + extra
