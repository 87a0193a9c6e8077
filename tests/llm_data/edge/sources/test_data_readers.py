import csv
import gzip
import io
import json
import math
import random
import tracemalloc
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from llm_data.edge.sources import csv_files, readers, text_files
from llm_data.edge.sources.inputs import find_inputs
from llm_data.edge.sources.readers import Meter, read_batches, read_records
from llm_data.errors import DataError
from llm_data.records import Reason, Record, Reject, Shape, text_of

TEXTS = ["plain", "two\nlines", 'quo"ted, comma', "日本語 🙂", " padded ", "x" * 5000, "last"]


def table():
    return pa.table({"id": list(range(len(TEXTS))), "text": TEXTS})


def write_jsonl(path):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))


def write_json(path):
    path.write_text(json.dumps([{"text": text} for text in TEXTS], indent=2, ensure_ascii=False))


def write_csv(path):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(TEXTS))


def write_parquet(path):
    parquet.write_table(table(), path, row_group_size=3)


def write_arrow_file(path):
    with ipc.new_file(path, table().schema) as writer:
        writer.write_table(table(), max_chunksize=3)


def write_arrow_stream(path):
    with ipc.new_stream(path, table().schema) as writer:
        writer.write_table(table(), max_chunksize=3)


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.json": write_json,
    "lines.json": write_jsonl,
    "a.csv": write_csv,
    "a.parquet": write_parquet,
    "file.arrow": write_arrow_file,
    "stream.arrow": write_arrow_stream,
}


def compressed(path, suffix):
    """A compressed copy of `path`, by the standard library or by Arrow."""
    target = path.with_name(path.name + suffix)
    if suffix == ".gz":
        target.write_bytes(gzip.compress(path.read_bytes()))
    else:
        with pa.CompressedOutputStream(str(target), "zstd") as stream:
            stream.write(path.read_bytes())
    return target


def read(paths, *, start=None, key="text"):
    files = find_inputs(paths).files
    return list(read_records(files, key=key, start=start, meter=Meter()))


def texts(items, key="text"):
    return [text_of(item, key=key) for item in items if isinstance(item, Record)]


@pytest.fixture(
    params=[(name, suffix) for name in WRITERS for suffix in ("", ".gz", ".zst")], ids="".join
)
def written(request, tmp_path) -> Path:
    name, suffix = request.param
    path = tmp_path / name
    WRITERS[name](path)
    return compressed(path, suffix) if suffix else path


def test_every_text_comes_back(written):
    assert texts(read([written])) == TEXTS


def test_reading_can_begin_after_any_record(written):
    """From each record's place on: the rest, with the places it had."""
    every = read([written, written])
    for done, item in enumerate(every, start=1):
        assert read([written, written], start=item.place) == every[done:]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_text_file_is_one_document(tmp_path, suffix):
    path = tmp_path / "a.txt"
    path.write_bytes("é\r\n\r\nend  \n".encode())
    path = compressed(path, suffix) if suffix else path
    assert texts(read([path])) == ["é\r\n\r\nend  \n"]


def test_blank_lines_are_no_records_but_count_as_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    items = read([path])
    assert texts(items) == ["a", "b"]
    assert [item.place.number for item in items] == [1, 4]


def test_a_row_with_too_many_fields_is_that_rows_error(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,a\n2,b,c\n3,d\n")
    items = read([path])
    assert texts(items) == ["a", "d"]
    (reject,) = [item for item in items if isinstance(item, Reject)]
    assert (reject.reason, reject.raw) == (Reason.BROKEN_ROW, "2,b,c")
    assert "3 fields, want 2" in reject.detail
    for done, item in enumerate(items, start=1):
        assert read([path], start=item.place) == items[done:]


def test_words_that_look_like_numbers_or_null_stay_words(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\n007\nNA\nnull\n1e5\n")
    assert texts(read([path])) == ["007", "NA", "null", "1e5"]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "file.arrow"])
def test_a_missing_column_names_those_there(tmp_path, name):
    WRITERS[name](tmp_path / name)
    (item,) = read([tmp_path / name], key="txt")
    assert item.reason is Reason.MISSING_KEY
    assert "has id, text; did you mean 'text'?" in item.detail


@pytest.mark.parametrize("values", [["a", None], [None, "a"]])
def test_a_null_is_an_error_of_its_row(tmp_path, values):
    parquet.write_table(pa.table({"text": pa.array(values, pa.string())}), tmp_path / "a.parquet")
    items = read([tmp_path / "a.parquet"])
    assert texts(items) == ["a"]
    (reject,) = [item for item in items if isinstance(item, Reject)]
    assert reject.reason is Reason.WRONG_TYPE
    assert reject.place.number == values.index(None) + 1


def test_a_column_of_numbers_is_refused_row_by_row(tmp_path):
    parquet.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert [item.detail for item in read([tmp_path / "a.parquet"])] == [
        "'text' is of type int, want a string"
    ] * 2


@pytest.mark.parametrize(
    "name",
    [
        "a.jsonl.gz",
        "a.csv.gz",
        "a.txt.gz",
        "a.jsonl.zst",
        "a.parquet",
        "file.arrow",
        "stream.arrow",
        "a.json",
        "a.parquet.gz",
    ],
)
def test_a_truncated_file_is_damaged_not_shorter(tmp_path, name):
    """Whatever came before the cut, the last thing said is that the file is broken."""
    bare = name.removesuffix(".gz").removesuffix(".zst")
    path = tmp_path / bare
    if bare.endswith(".txt"):
        path.write_text("text " * 1000)
    else:
        WRITERS[bare](path)
    if name != bare:
        path = compressed(path, name.removeprefix(bare))
    path.write_bytes(path.read_bytes()[:-9])
    last = read([path])[-1]
    assert isinstance(last, Reject)
    assert last.reason is Reason.BROKEN_FILE
    assert last.place.resume is None
    assert read([path], start=last.place) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.txt"])
def test_an_empty_file_is_counted_as_empty(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    (item,) = read([path])
    found = item if isinstance(item, Reject) else text_of(item, key="text")
    assert found.reason is Reason.EMPTY


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.gz", "a.csv"])
def test_rubbish_never_passes_as_records(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(bytes(range(256)) * 40)
    items = read([path])
    assert items
    assert all(isinstance(item, Reject) for item in items)


def test_batches_are_bounded_and_hold_everything(tmp_path, monkeypatch):
    write_csv(tmp_path / "a.csv")
    monkeypatch.setattr(readers, "BATCH_RECORDS", 2)
    files = find_inputs([tmp_path / "a.csv"]).files
    batches = list(read_batches(files, key="text", start=None, meter=Meter()))
    assert [len(batch.parts) for batch in batches] == [2, 2, 2, 1]
    assert texts([item for batch in batches for item in batch.items()]) == TEXTS


@pytest.mark.parametrize("block", [1, 7, 20, 64, 1 << 20])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_blocks_of_lines_of_any_size_hold_each_line_once(name, block, tmp_path, monkeypatch):
    lines = [b'{"text": "%d"}' % i + b" " * (i % 9) for i in range(50)]
    lines[10:10] = [b"", b"   ", b'{"text": "' + b"x" * 200 + b'"}']
    data = b"\xef\xbb\xbf" + b"\n".join(lines)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block)
    want = [(n, line.strip()) for n, line in enumerate(lines, start=1) if line.strip()]
    files = find_inputs([tmp_path / name]).files
    found = list(read_records(files, key="text", start=None, meter=Meter()))
    assert [(item.place.number, item.payload) for item in found] == want
    for item in found[::7]:
        rest = read_records(files, key="text", start=item.place, meter=Meter())
        assert list(rest) == found[found.index(item) + 1 :]


def test_the_meter_ends_at_the_size_on_disk(tmp_path):
    for name, write in WRITERS.items():
        write(tmp_path / name)
    inputs = find_inputs([tmp_path])
    meter, seen = Meter(), []
    for _ in read_records(inputs.files, key="text", start=None, meter=meter):
        seen.append(meter.bytes)
    assert meter.bytes == inputs.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert max(seen) <= inputs.bytes


def test_a_file_that_vanishes_is_an_error_not_a_record(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    files = find_inputs([tmp_path / "a.jsonl"]).files
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: No such file"):
        list(read_records(files, key="text", start=None, meter=Meter()))


def test_lines_longer_than_any_buffer_are_whole(tmp_path):
    text = "é" * (3 << 20)
    stream = io.StringIO()
    json.dump({"text": text}, stream)
    (tmp_path / "a.jsonl").write_text(stream.getvalue() + "\n" + stream.getvalue())
    assert texts(read([tmp_path / "a.jsonl"])) == [text, text]


CHATS = [
    {"id": 2**64 - 1, "conversations": [{"from": "human", "value": "né"}], "meta": {"x": [1.5]}},
    {"id": 7, "conversations": [], "meta": {"x": None}},
    {"id": 0, "conversations": [{"from": "gpt", "value": "a\nb"}] * 3, "meta": None},
]


def chat_table():
    turn = pa.struct({"from": pa.string(), "value": pa.large_string()})
    schema = pa.schema(
        {
            "id": pa.uint64(),
            "conversations": pa.list_(turn),
            "meta": pa.struct({"x": pa.list_(pa.float64())}),
        }
    )
    return pa.Table.from_pylist(CHATS, schema=schema)


def write_chats(path):
    if path.suffix == ".parquet":
        parquet.write_table(chat_table(), path, row_group_size=2)
    elif path.suffix == ".arrow":
        with ipc.new_stream(path, chat_table().schema) as writer:
            writer.write_table(chat_table(), max_chunksize=2)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(chat) for chat in CHATS))
    else:
        path.write_text(json.dumps(CHATS))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.json"])
def test_without_a_key_every_record_is_whole_json(tmp_path, name):
    write_chats(tmp_path / name)
    items = read([tmp_path / name], key=None)
    assert {item.shape for item in items} == {Shape.JSON}
    assert [json.loads(item.payload) for item in items] == CHATS
    for done, item in enumerate(items, start=1):
        assert read([tmp_path / name], key=None, start=item.place) == items[done:]


def test_without_a_key_a_csv_row_is_an_object_of_strings(tmp_path):
    write_csv(tmp_path / "a.csv")
    rows = [json.loads(item.payload) for item in read([tmp_path / "a.csv"], key=None)]
    assert rows == [{"id": str(number), "text": text} for number, text in enumerate(TEXTS)]


def test_plain_text_has_no_fields(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    (reject,) = read([tmp_path / "a.txt"], key=None)
    assert reject.reason is Reason.WRONG_TYPE
    assert "want jsonl, json, csv, parquet or arrow" in reject.detail


def test_values_that_json_has_no_word_for_are_written_out(tmp_path):
    row = {
        "decimal": Decimal("12345678901234567890.05"),
        "day": date(2024, 2, 29),
        "moment": datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC),
        "text": b"\xc3\xa9",
        "picture": b"\xff\xd8\xff",
        "nan": math.nan,
        "nested": {"day": date(9999, 12, 31)},
    }
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    (item,) = read([tmp_path / "a.parquet"], key=None)
    assert json.loads(item.payload) == {
        "decimal": "12345678901234567890.05",
        "day": "2024-02-29",
        "moment": "2024-02-29T01:02:03.000004+00:00",
        "text": "é",
        "picture": {"bytes_without_text": 3},
        "nan": None,
        "nested": {"day": "9999-12-31"},
    }


@pytest.mark.parametrize("write", [parquet.write_table, feather.write_feather])
def test_only_the_row_that_is_not_utf8_is_refused(tmp_path, write):
    wrong = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    path = tmp_path / ("a.parquet" if write is parquet.write_table else "a.arrow")
    write(pa.table({"text": wrong, "id": [1, 2, 3]}), path)
    assert [found if isinstance(found, str) else found.reason for found in texts(read([path]))] == [
        "a",
        Reason.INVALID_UTF8,
        "c",
    ]
    first, second, third = read([path], key=None)
    assert [json.loads(first.payload)["text"], json.loads(third.payload)["text"]] == ["a", "c"]
    assert (second.reason, second.place.number) == (Reason.INVALID_UTF8, 2)


@pytest.mark.parametrize("key", ["text", None])
def test_a_column_that_is_there_twice_is_refused(tmp_path, key):
    table = pa.table([["a"], ["b"]], names=["text", "text"])
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    for name in ("a.arrow", "a.csv"):
        (reject,) = read([tmp_path / name], key=key)
        assert "'text' is there 2 times" in reject.detail


@pytest.mark.parametrize("key", ["text", None])
def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path, key):
    """Python's csv and Arrow both hand out the rest of the file as one value."""
    (tmp_path / "a.csv").write_text('id,text\n1,a\n2,"b\n3,c\n4,d\n')
    first, broken = read([tmp_path / "a.csv"], key=key)
    assert isinstance(first, Record)
    assert broken.reason is Reason.BROKEN_FILE
    assert "damaged after line 2: the quote opened in line 3 is never closed" in broken.detail


def test_a_field_beyond_reason_is_an_open_quote(tmp_path, monkeypatch):
    """Memory is bounded: the rest of a large file is not collected."""
    monkeypatch.setattr(csv_files, "FIELD_BYTES", 1000)
    (tmp_path / "a.csv").write_text('text\na\n"b\n' + "c\n" * 1000 + '"\nd\n')
    first, broken = read([tmp_path / "a.csv"])
    assert isinstance(first, Record)
    assert "line 3: field larger than field limit (1000)" in broken.detail


def test_a_row_longer_than_any_buffer_is_whole(tmp_path):
    text = 'é"\n' * (3 << 20)
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["text", "id"], [text, 1], ["b", 2]])
    assert texts(read([tmp_path / "a.csv"])) == [text, "b"]


def test_csv_places_are_lines_of_the_file(tmp_path):
    """As an editor counts them, blank ones and those inside of quotes too."""
    text = 'id,text\r\n\r\n1,"two\r\nlines"\r\n2,b\r\n\r\n3,too,much\r\n4,d'
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf\r\n" + text.encode())
    items = read([tmp_path / "a.csv"])
    assert [item.place.number for item in items] == [4, 6, 8, 9]
    assert texts(items) == ["two\r\nlines", "b", "d"]
    (broken,) = [item for item in items if isinstance(item, Reject)]
    assert (broken.place.number, broken.raw) == (8, "3,too,much")


@pytest.mark.parametrize("key", ["text", None])
def test_csv_rows_that_are_not_utf8_cost_only_themselves(tmp_path, key):
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,a\n2,\xff\n3\xfe\n4,d\n")
    items = read([tmp_path / "a.csv"], key=key)
    found = [text_of(item, key="text") if isinstance(item, Record) else item for item in items]
    assert [each if isinstance(each, str) else each.reason for each in found] == [
        "a",
        Reason.INVALID_UTF8,
        Reason.BROKEN_ROW,
        "d",
    ]


def test_reading_csv_leaves_pythons_limit_as_it_was(tmp_path):
    write_csv(tmp_path / "a.csv")
    before = csv.field_size_limit()
    read([tmp_path / "a.csv"])
    assert csv.field_size_limit() == before


def test_a_header_that_never_ends_is_damage(tmp_path):
    (tmp_path / "a.csv").write_text('"text\na\n')
    (reject,) = read([tmp_path / "a.csv"])
    assert reject.reason is Reason.BROKEN_FILE
    assert "the quote opened in line 1 is never closed" in reject.detail


def test_a_folder_of_several_formats_is_read_completely(tmp_path):
    for name, write in WRITERS.items():
        write(tmp_path / name)
    assert texts(read([tmp_path])) == TEXTS * len(WRITERS)


def test_a_row_group_larger_than_memory_is_read_bit_by_bit(tmp_path):
    """Arrow's own default reads a column of a row group at once: here 48 MB."""
    rows = [random.Random(number).randbytes(2 << 10).hex() for number in range(12 << 10)]
    table = pa.table({"text": rows})
    parquet.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    assert parquet.ParquetFile(tmp_path / "a.parquet").metadata.num_row_groups == 1
    files = find_inputs([tmp_path / "a.parquet"]).files
    tracemalloc.start()
    try:
        for item in read_records(files, key="text", start=None, meter=Meter()):
            assert isinstance(item, Record)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 24 << 20


LINES = [
    (b'{"text": "a\\u0000b"}', "a\0b"),
    (b'{"text": "a", "n": 123456789012345678901234567890}', "a"),
    (b'{"text": "a", "text": "b"}', "b"),
    (b'{"text": "a\0b"}', Reason.INVALID_JSON),
    (b'{"text": "a", "n": NaN}', Reason.INVALID_JSON),
    (b'{"text": "a", "n": -Infinity}', Reason.INVALID_JSON),
    (b'{"text": "\\ud800"}', Reason.INVALID_JSON),
    (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", Reason.INVALID_JSON),
    (b'{"text": "a"', Reason.INVALID_JSON),
    (b'{"text": "\xe9"}', Reason.INVALID_UTF8),
    (b'["text"]', Reason.WRONG_TYPE),
    (b'{"text": ["a"]}', Reason.WRONG_TYPE),
    (b'{"texts": "a"}', Reason.MISSING_KEY),
    (b'{"text": ""}', Reason.EMPTY),
    (b"\xef\xbb\xbf{}", Reason.INVALID_JSON),
]


def test_every_bad_line_costs_itself_alone_under_its_own_number(tmp_path):
    good = b'{"text": "good"}'
    pairs = [part for line, _ in LINES for part in (good, line)]
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join(pairs))
    items = read([tmp_path / "a.jsonl"])
    found = [text_of(item, key="text") for item in items]
    said = [each if isinstance(each, str) else each.reason for each in found]
    assert said[::2] == ["good"] * len(LINES)
    assert said[1::2] == [expected for _, expected in LINES]
    assert [item.place.number for item in items] == list(range(1, len(pairs) + 1))
