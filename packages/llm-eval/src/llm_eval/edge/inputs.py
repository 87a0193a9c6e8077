"""Documents from files and folders of UTF-8 text or JSON lines."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from llm_eval.documents import Document, parse_jsonl, without_empty
from llm_eval.errors import EvalError

JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})


def read_documents(
    inputs: Sequence[Path], *, pattern: str, text_key: str, limit: int | None
) -> list[Document]:
    """All non-empty documents in a fixed order: inputs as given, a folder's files sorted."""
    documents = without_empty(
        [
            document
            for path in inputs
            for file, name in _files(path, pattern)
            for document in _read(file, name, text_key)
        ]
    )
    if not documents:
        raise EvalError(f"{_listed(inputs)}: every document is empty; nothing to score")
    return documents[:limit]


def _files(path: Path, pattern: str) -> Iterator[tuple[Path, str]]:
    if path.is_file():
        yield path, path.name
        return
    if not path.is_dir():
        raise EvalError(f"{path}: no such file or folder")
    files = sorted(file for file in path.rglob(pattern) if file.is_file())
    if not files:
        raise EvalError(f"{path}: no file matches {pattern!r}; {_what_is_there(path)}")
    for file in files:
        yield file, file.relative_to(path).as_posix()


def _read(file: Path, name: str, text_key: str) -> Iterator[Document]:
    data = file.read_bytes()
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EvalError(
            f"{file}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8 text; "
            "convert the file or leave it out with --pattern"
        ) from None
    if file.suffix in JSONL_SUFFIXES:
        yield from parse_jsonl(content, name, text_key)
    else:
        yield Document(name, content)


def _what_is_there(folder: Path) -> str:
    suffixes = Counter(p.suffix or "(no suffix)" for p in folder.rglob("*") if p.is_file())
    if not suffixes:
        return "the folder holds no files"
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
    return f"it holds {kinds}; choose with --pattern '*.py'"


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
