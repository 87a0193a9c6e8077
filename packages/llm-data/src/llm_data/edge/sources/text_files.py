"""Readers of plain text, JSON lines and JSON."""

from collections.abc import Iterator
from io import BufferedReader
from itertools import islice
from typing import BinaryIO, cast

from llm_data.edge.sources.reading import Item, Job, metered
from llm_data.edge.sources.streams import advance
from llm_data.formats.json_stream import split_values
from llm_data.records import BOM, Lines, Reason, Record, Shape

# Lines that are handed on together; what a batch is filled with, so a little more than that.
BLOCK_BYTES = 256 << 10


def read_text(job: Job) -> Iterator[Item]:
    """The whole file as one document."""
    if job.key is None:
        detail = "plain text has no fields; want jsonl, json, csv, parquet or arrow"
        yield job.refused(Reason.WRONG_TYPE, detail)
        return
    with metered(job) as source:
        payload = source.stream.read().removeprefix(BOM)
    yield Record(job.place(1, None), Shape.FILE, payload)


def read_lines(job: Job) -> Iterator[Lines]:
    """One JSON value a line; blocks of lines, for a worker to cut apart."""
    number, offset = (job.start.number, job.skip) if job.start else (0, 0)
    with metered(job) as source:
        advance(source.stream, to=offset)
        for data in _whole_lines(source.stream):
            count = data.count(b"\n") + (not data.endswith(b"\n"))
            end = job.place(number + count, offset + len(data))
            yield Lines(number, offset, data, end)
            number, offset = end.number, offset + len(data)


def read_json(job: Job) -> Iterator[Item]:
    """The elements of an array, or objects one after another."""
    with metered(job) as source:
        values = split_values(source.stream.read, where="JSON")
        for number, payload in enumerate(islice(values, job.skip, None), start=job.skip + 1):
            yield Record(job.place(number, number), Shape.JSON, payload)


def _whole_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The stream in blocks that end where a line does; of a damaged one what is whole."""
    read = cast(BufferedReader, stream).read1
    kept = bytearray()
    try:
        while block := read(BLOCK_BYTES):
            before = len(kept)
            kept += block
            # What stood there before has no line's end when it is a block long already.
            if len(kept) >= BLOCK_BYTES and (
                cut := kept.rfind(b"\n", before if before >= BLOCK_BYTES else 0) + 1
            ):
                yield bytes(kept[:cut])
                del kept[:cut]
    except Exception:
        if cut := kept.rfind(b"\n") + 1:
            yield bytes(kept[:cut])
        raise
    if kept:
        yield bytes(kept)
