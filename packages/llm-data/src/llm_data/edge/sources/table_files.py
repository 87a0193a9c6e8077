"""Readers of Parquet and Arrow files."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import BinaryIO

from llm_data.edge.sources.reading import Item, Job, wrong_columns
from llm_data.edge.sources.rows import row_item, values_of
from llm_data.edge.sources.streams import seekable_file
from llm_data.errors import FormatError

# What is decoded at once: so many rows, fewer if they are long.
_ROWS = 1024
_DECODED_BYTES = 8 << 20
# Without it the whole of a row group's column is read first.
_BUFFERED_BYTES = 1 << 20

_ARROW_FILE_MAGIC = b"ARROW1"
_ARROW_STREAM_START = 8
_ARROW_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_OLD_ARROW_STREAM_END = b"\0\0\0\0"


def read_parquet(job: Job) -> Iterator[Item]:
    """The rows of all row groups."""
    from pyarrow import parquet

    with (
        _lies_told(),
        seekable_file(job.file.path) as stream,
        parquet.ParquetFile(
            stream,
            pre_buffer=False,
            buffer_size=_BUFFERED_BYTES,
            page_checksum_verification=True,
        ) as file,
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
            if held.num_rows < 0:
                raise FormatError(f"row group {group + 1} has {held.num_rows} rows")
            if first + held.num_rows > number:
                row_bytes = held.total_byte_size // held.num_rows
                rows = max(1, min(_ROWS, _DECODED_BYTES // (row_bytes or 1)))
                batches = file.iter_batches(rows, row_groups=[group], columns=columns)
                values = (value for batch in batches for value in values_of(batch, key=job.key))
                for value in islice(values, number - first, None):
                    number += 1
                    yield row_item(job, job.place(number, number), value)
            first += held.num_rows
            if number < first:
                raise FormatError(f"row group {group + 1} ends before its {held.num_rows} rows")
        if number != file.metadata.num_rows:
            raise FormatError(f"the file counts {file.metadata.num_rows} rows, found {number}")


def read_arrow(job: Job) -> Iterator[Item]:
    """Record batches of an IPC file, or of an IPC stream such as `datasets` saves."""
    from pyarrow import ipc

    with _lies_told(), seekable_file(job.file.path) as stream:
        is_file = stream.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        # A file is a stream between a magic and a footer.
        stream.seek(_ARROW_STREAM_START if is_file else 0)
        reader = ipc.open_stream(stream)
        job.meter.current = stream.tell
        if wrong := wrong_columns(job, reader.schema.names):
            yield wrong
            return
        number = batches = 0
        for batch in reader:
            batches += 1
            if number + batch.num_rows > job.skip:
                skipped = max(0, job.skip - number)
                number += skipped
                for value in islice(values_of(batch, key=job.key), skipped, None):
                    number += 1
                    yield row_item(job, job.place(number, number), value)
            else:
                number += batch.num_rows
        if is_file:
            _check_footer(stream, batches=batches)
        else:
            _check_end(stream)


@contextmanager
def _lies_told() -> Iterator[None]:
    """What Arrow meets only by believing the sizes and names of a damaged file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise FormatError(f"a column's name is not UTF-8: {error}") from None
    except MemoryError as error:
        raise FormatError(f"it asks for more memory than there is {error}".rstrip()) from None


def _check_footer(stream: BinaryIO, *, batches: int) -> None:
    """An error if the footer of an IPC file is damaged, or lists other batches than were found."""
    from pyarrow import ipc

    stream.seek(0)
    listed = ipc.open_file(stream).num_record_batches
    if listed != batches:
        raise FormatError(f"its footer lists {listed} record batches, found {batches}")


def _check_end(stream: BinaryIO) -> None:
    """An error if an IPC stream stops without saying so, or goes on after it has."""
    at = stream.tell()
    stream.seek(0)
    mark = _ARROW_STREAM_END if stream.read(4) == _ARROW_STREAM_END[:4] else _OLD_ARROW_STREAM_END
    stream.seek(at - len(mark))
    if stream.read(len(mark)) != mark:
        raise FormatError("the stream has no end mark: cut short, or its writer was not closed")
    if stream.read(1):
        raise FormatError(f"found more bytes after the stream's end at byte {at}")
