"""Damaged files of every format: what came before the damage is read, and nothing escapes."""

import csv
import gzip
import io
import json
import re
from itertools import takewhile

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather, ipc, parquet

from llm_data.edge.sources.inputs import find_inputs
from llm_data.edge.sources.readers import Meter, read_records
from llm_data.records import Reason, Reject, object_of, text_of

ROWS = [
    {"id": number, "text": text * (1 + number % 3), "turns": [{"role": "user", "content": text}]}
    for number, text in enumerate(
        ["plain", "two\nlines", 'quo"ted, comma', "日本語 🙂", "last"] * 4
    )
]
BATCH_ROWS = 6

# Bytes that mean something to one of the formats.
MEANINGFUL = [
    b'"',
    b"\n",
    b"\r",
    b",",
    b"\x00",
    b"\xff",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\xef\xbb\xbf",
]


def jsonl():
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


def json_array():
    return json.dumps(ROWS, ensure_ascii=False).encode()


def comma_separated():
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["id", "text"])
    writer.writerows((row["id"], row["text"]) for row in ROWS)
    return out.getvalue().encode()


def arrow_stream():
    table, out = pa.Table.from_pylist(ROWS), io.BytesIO()
    with ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=BATCH_ROWS)
    return out.getvalue()


def arrow_file():
    out = io.BytesIO()
    feather.write_feather(pa.Table.from_pylist(ROWS), out, chunksize=BATCH_ROWS)
    return out.getvalue()


def parquet_file():
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), out, row_group_size=BATCH_ROWS)
    return out.getvalue()


WHOLE = {
    "a.jsonl": jsonl(),
    "a.json": json_array(),
    "lines.json": jsonl(),
    "a.csv": comma_separated(),
    "stream.arrow": arrow_stream(),
    "file.arrow": arrow_file(),
    "a.parquet": parquet_file(),
    "a.txt": "日本語 🙂\n".encode() * 20,
    "a.jsonl.gz": gzip.compress(jsonl()),
    "a.csv.gz": gzip.compress(comma_separated()),
    "a.parquet.gz": gzip.compress(parquet_file()),
    "a.jsonl.zst": pa.compress(jsonl(), "zstd", asbytes=True),
}


@st.composite
def damages(draw, size):
    """A cut, a change of bytes, or bytes put in: (where, how many go, what comes)."""
    where = draw(st.integers(0, size - 1))
    gone = draw(st.integers(0, 8) | st.just(size))
    come = draw(st.binary(max_size=8) | st.sampled_from(MEANINGFUL))
    return where, gone, come


def damaged(data, where, gone, come):
    return data[:where] + come + data[where + gone :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read(path, *, key, start=None):
    files = find_inputs([path]).files
    return list(read_records(files, key=key, start=start, meter=Meter()))


def opened(item, key):
    """What a worker makes of an item."""
    if isinstance(item, Reject):
        return item
    return object_of(item) if key is None else text_of(item, key=key)


@pytest.mark.parametrize("key", ["text", None])
@pytest.mark.parametrize("name", WHOLE)
def test_damage_gives_records_and_rejects_and_the_same_ones_from_any_record_on(folder, name, key):
    path = folder / name

    @settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
    @given(damage=damages(len(WHOLE[name])), from_record=st.integers(0, 30))
    def check(damage, from_record):
        path.write_bytes(damaged(WHOLE[name], *damage))
        items = read(path, key=key)
        assert items
        assert all(opened(item, key) is not None for item in items)
        numbers = [item.place.number for item in items]
        assert numbers == sorted(set(numbers))
        done = from_record % len(items)
        assert read(path, key=key, start=items[done].place) == items[done + 1 :]

    check()


def ends_of_rows(name):
    """For each row the byte of the whole file at which nothing of it is left to come."""
    data = WHOLE[name]
    if name in ("a.jsonl", "lines.json"):
        return [match.end() for match in re.finditer(rb"\n|$", data)]
    if name == "a.json":
        # Its separator belongs to an element: nothing else says that it is over.
        return [match.end() for match in re.finditer(rb"\]\}[,\]]", data)]
    if name == "a.csv":
        every = re.finditer(rb'(?:[^"\r]|"[^"]*")*\r\n', data)
        return [match.end() for match in every][1:]
    ends = []
    stream = io.BytesIO(data[8:] if name == "file.arrow" else data)
    shift = 8 if name == "file.arrow" else 0
    for batch in ipc.open_stream(stream):
        ends += [stream.tell() + shift] * batch.num_rows
    return ends


@pytest.mark.parametrize(
    "name", ["a.jsonl", "lines.json", "a.json", "a.csv", "stream.arrow", "file.arrow"]
)
def test_every_record_before_the_damage_is_read(folder, name):
    path, data, ends = folder / f"before-{name}", WHOLE[name], ends_of_rows(name)
    assert len(ends) == len(ROWS)

    @settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
    @given(damage=damages(len(data)))
    def check(damage):
        path.write_bytes(damaged(data, *damage))
        texts = [opened(item, "text") for item in read(path, key="text")]
        whole = list(takewhile(lambda end: end <= damage[0], ends))
        assert texts[: len(whole)] == [row["text"] for row in ROWS[: len(whole)]]

    check()


@pytest.mark.parametrize(
    ("name", "step"),
    [("a.parquet", 23), ("stream.arrow", 5), ("file.arrow", 29), ("a.json", 17), ("a.jsonl.gz", 3)],
)
def test_a_file_cut_short_never_looks_whole(folder, name, step):
    path, data = folder / f"cut-{name}", WHOLE[name]
    cuts = {*range(1, len(data), step), *range(len(data) - 20, len(data))}
    if name.endswith(".arrow"):
        cuts |= set(ends_of_rows(name))
    for size in cuts:
        path.write_bytes(data[:size])
        last = read(path, key="text")[-1]
        assert isinstance(last, Reject), size
        assert last.reason is Reason.BROKEN_FILE


@pytest.mark.parametrize("name", ["stream.arrow", "a.json"])
def test_what_follows_the_end_is_never_left_out_silently(folder, name):
    """`cat a b > c` of formats that say where they end."""
    (folder / name).write_bytes(WHOLE[name] * 2)
    *records, reject = read(folder / name, key="text")
    assert [opened(item, "text") for item in records] == [row["text"] for row in ROWS]
    assert reject.reason is Reason.BROKEN_FILE


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_files_joined_to_others_are_read_to_the_end(folder, suffix):
    """Both formats allow that."""
    one = jsonl() + b"\n"
    packed = gzip.compress(one) if suffix == "gz" else pa.compress(one, "zstd", asbytes=True)
    (folder / f"joined.jsonl.{suffix}").write_bytes(packed * 2)
    items = read(folder / f"joined.jsonl.{suffix}", key="text")
    assert [opened(item, "text") for item in items] == [row["text"] for row in ROWS * 2]
