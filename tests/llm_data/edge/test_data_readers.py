import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from llm_data.edge import readers
from llm_data.edge.inputs import find_inputs
from llm_data.edge.readers import Meter, read_batches, read_records
from llm_data.errors import DataError
from llm_data.records import Reason, Record, Reject, text_of

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
    write_jsonl(tmp_path / "a.jsonl")
    monkeypatch.setattr(readers, "BATCH_RECORDS", 2)
    files = find_inputs([tmp_path / "a.jsonl"]).files
    batches = list(read_batches(files, key="text", start=None, meter=Meter()))
    assert [len(batch.items) for batch in batches] == [2, 2, 2, 1]
    assert texts([item for batch in batches for item in batch.items]) == TEXTS


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
