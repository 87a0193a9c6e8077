import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from llm_data.edge.sources.inputs import Kind, find_inputs
from llm_data.errors import DataError, UsageError


def make(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names(inputs, folder):
    return [file.path.relative_to(folder).as_posix() for file in inputs.files]


def test_folders_are_sorted_and_arguments_keep_their_order(tmp_path):
    make(tmp_path, ["z.txt", "b/c.txt", "b/a.txt", "b/a/x.txt", "b/.hidden.txt", "b/.git/y.txt"])
    inputs = find_inputs([tmp_path / "z.txt", tmp_path / "b"])
    assert names(inputs, tmp_path) == ["z.txt", "b/a/x.txt", "b/a.txt", "b/c.txt"]
    assert [source.files for source in inputs.sources] == [1, 3]


def test_known_suffixes_are_read_and_others_counted(tmp_path):
    make(tmp_path, ["a.txt", "b.JSONL", "c.parquet.gz", "d.log", "e.log", "README", "g.md.zst"])
    inputs = find_inputs([tmp_path])
    assert [file.kind for file in inputs.files] == [Kind.TEXT, Kind.JSONL, Kind.PARQUET]
    assert inputs.ignored == {".log": 2, "README": 1, ".md": 1}


def test_a_pattern_chooses_and_unknown_suffixes_become_text(tmp_path):
    make(tmp_path, ["a.txt", "b.log", "sub/c.log.gz", "sub/d.jsonl"])
    assert names(find_inputs([tmp_path], patterns=["*.log*"]), tmp_path) == [
        "b.log",
        "sub/c.log.gz",
    ]
    inputs = find_inputs([tmp_path], patterns=["sub/*", "*.txt"])
    assert [file.kind for file in inputs.files] == [Kind.TEXT, Kind.TEXT, Kind.JSONL]


def test_what_a_run_writes_is_not_its_input(tmp_path):
    stem = tmp_path / "out_text_document"
    make(tmp_path, ["a.json", "out_text_document.json", "out_text_document.parts/manifest.json"])
    assert names(find_inputs([tmp_path], output_stem=stem), tmp_path) == ["a.json"]


@pytest.mark.parametrize("change", ["touch", "grow", "rename", "add", "none"])
def test_digest_moves_exactly_when_a_file_does(tmp_path, change):
    make(tmp_path, ["a.txt", "b.txt"])
    before = find_inputs([tmp_path]).sources[0].digest
    if change == "touch":
        os.utime(tmp_path / "a.txt", ns=(1, 1))
    elif change == "grow":
        stat = (tmp_path / "a.txt").stat()
        (tmp_path / "a.txt").write_text("longer than before")
        os.utime(tmp_path / "a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "rename":
        (tmp_path / "a.txt").rename(tmp_path / "c.txt")
    elif change == "add":
        make(tmp_path, ["c.txt"])
    assert (find_inputs([tmp_path]).sources[0].digest == before) is (change == "none")


def test_a_folder_without_input_says_what_it_holds(tmp_path):
    make(tmp_path, ["a.log", "b.log", "c.md"])
    with pytest.raises(DataError, match=r"found 2 \.log, 1 \.md, want \.txt, "):
        find_inputs([tmp_path])
    with pytest.raises(DataError, match=r"want \*\.rst"):
        find_inputs([tmp_path], patterns=["*.rst"])


def test_an_unknown_file_is_refused_with_the_way_out(tmp_path):
    make(tmp_path, ["a.log"])
    with pytest.raises(UsageError, match=r"--pattern '\*\.log' reads it as plain text"):
        find_inputs([tmp_path / "a.log"])
    assert find_inputs([tmp_path / "a.log"], patterns=["*.log"]).files[0].kind is Kind.TEXT
    with pytest.raises(UsageError, match="no such file or folder"):
        find_inputs([tmp_path / "b.txt"])
