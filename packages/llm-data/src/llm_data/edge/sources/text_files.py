"""Readers of plain text, JSON lines and JSON."""

from collections.abc import Iterator
from itertools import islice

from llm_data.edge.sources.reading import BOM, Item, Job, metered
from llm_data.edge.sources.streams import advance
from llm_data.formats.json_stream import split_values
from llm_data.records import Reason, Record, Shape


def read_text(job: Job) -> Iterator[Item]:
    """The whole file as one document."""
    if job.key is None:
        detail = "plain text has no fields; want jsonl, json, csv, parquet or arrow"
        yield job.refused(Reason.WRONG_TYPE, detail)
        return
    with metered(job) as source:
        payload = source.stream.read().removeprefix(BOM)
    yield Record(job.place(1, None), Shape.FILE, payload)


def read_lines(job: Job) -> Iterator[Item]:
    """One JSON value a line; blank lines are no records."""
    number, offset = (job.start.number, job.skip) if job.start else (0, 0)
    with metered(job) as source:
        advance(source.stream, to=offset)
        for line in source.stream:
            number += 1
            offset += len(line)
            payload = (line.removeprefix(BOM) if offset == len(line) else line).strip()
            if payload:
                yield Record(job.place(number, offset), Shape.JSON, payload)


def read_json(job: Job) -> Iterator[Item]:
    """The elements of an array, or objects one after another."""
    with metered(job) as source:
        values = split_values(source.stream.read, where="JSON")
        for number, payload in enumerate(islice(values, job.skip, None), start=job.skip + 1):
            yield Record(job.place(number, number), Shape.JSON, payload)
