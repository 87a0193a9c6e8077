"""Readers of Parquet and Arrow files."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from llm_data.edge.reading import Item, Job, wrong_columns
from llm_data.edge.rows import row_item, values_of
from llm_data.edge.streams import seekable_file

if TYPE_CHECKING:
    import pyarrow as pa

# What is decoded at once: so many rows, fewer if they are long.
_ROWS = 1024
_DECODED_BYTES = 8 << 20

_ARROW_FILE_MAGIC = b"ARROW1"


def read_parquet(job: Job) -> Iterator[Item]:
    """The rows of all row groups."""
    from pyarrow import parquet

    with (
        seekable_file(job.file.path) as stream,
        parquet.ParquetFile(stream, page_checksum_verification=True) as file,
    ):
        if wrong := wrong_columns(job, file.schema_arrow.names):
            yield wrong
            return
        number, total = job.skip, file.metadata.num_rows or 1
        job.meter.current = lambda: job.file.bytes * number // total
        columns = None if job.key is None else [job.key]
        first = 0
        for group in range(file.metadata.num_row_groups):
            held = file.metadata.row_group(group)
            if first + held.num_rows > number:
                row_bytes = held.total_byte_size // held.num_rows
                rows = max(1, min(_ROWS, _DECODED_BYTES // (row_bytes or 1)))
                batches = file.iter_batches(rows, row_groups=[group], columns=columns)
                values = (value for batch in batches for value in values_of(batch, key=job.key))
                for value in islice(values, number - first, None):
                    number += 1
                    yield row_item(job, job.place(number, number), value)
            first += held.num_rows


def read_arrow(job: Job) -> Iterator[Item]:
    """Record batches of an IPC file, or of an IPC stream such as `datasets` saves."""
    from pyarrow import ipc

    with seekable_file(job.file.path) as stream:
        is_file = stream.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        stream.seek(0)
        reader = ipc.open_file(stream) if is_file else ipc.open_stream(stream)
        job.meter.current = stream.tell
        if wrong := wrong_columns(job, reader.schema.names):
            yield wrong
            return
        first = 0
        for batch in _record_batches(reader):
            if first + batch.num_rows > job.skip:
                skipped = max(0, job.skip - first)
                values = values_of(batch.slice(skipped), key=job.key)
                for number, value in enumerate(values, start=first + skipped + 1):
                    yield row_item(job, job.place(number, number), value)
            first += batch.num_rows


def _record_batches(
    reader: "pa.RecordBatchFileReader | pa.RecordBatchStreamReader",
) -> "Iterator[pa.RecordBatch]":
    count = getattr(reader, "num_record_batches", None)
    if count is None:
        yield from reader
    else:
        yield from (reader.get_batch(number) for number in range(count))
