import pytest

from llm_eval.edge.inputs import read_documents
from llm_eval.errors import EvalError


def _read(*paths, pattern="*.txt", limit=None):
    return read_documents(paths, pattern=pattern, text_key="text", limit=limit)


def test_files_come_sorted_by_path_and_empty_ones_go(corpus):
    assert [document.name for document in _read(corpus)] == [
        "a.txt",
        "b.txt",
        "sub/c.txt",
        "sub/d.txt",
    ]


def test_limit_counts_documents_across_inputs(corpus):
    documents = _read(corpus / "b.txt", corpus, limit=2)
    assert [document.name for document in documents] == ["b.txt", "a.txt"]


def test_line_ends_are_kept_as_they_are(tmp_path):
    (tmp_path / "dos.txt").write_bytes(b"a\r\nb\r\n")
    assert _read(tmp_path)[0].text == "a\r\nb\r\n"


def test_json_lines_by_suffix(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n')
    assert [document.name for document in _read(tmp_path / "x.jsonl")] == ["x.jsonl:1", "x.jsonl:3"]


def test_bytes_that_are_not_utf8_are_located(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9!")
    with pytest.raises(EvalError, match=r"bad.txt: byte 0xe9 at offset 3 is not UTF-8"):
        _read(tmp_path)


def test_a_folder_without_a_match_says_what_it_holds(corpus):
    with pytest.raises(EvalError, match=r"no file matches '\*.py'; it holds 5 .txt"):
        _read(corpus, pattern="*.py")


def test_an_empty_folder(tmp_path):
    with pytest.raises(EvalError, match="the folder holds no files"):
        _read(tmp_path)


def test_nothing_but_empty_documents(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(EvalError, match="every document is empty"):
        _read(tmp_path)


def test_a_missing_path(tmp_path):
    with pytest.raises(EvalError, match="nowhere: no such file or folder"):
        _read(tmp_path / "nowhere")
