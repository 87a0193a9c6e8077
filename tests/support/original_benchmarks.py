"""Small files in the original layouts of the named benchmarks, written as their authors do."""

import csv
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

from llm_eval.edge.importing import _expected_subjects
from llm_eval.originals import LAYOUTS


def subjects(name: str) -> list[str]:
    """The subjects that the harness' task files name."""
    return sorted(_expected_subjects(LAYOUTS[name]))


def mmlu(path: Path, *, names: list[str] | None = None, rows: int = 2) -> Path:
    """`data.tar`: headerless CSV, `data/SPLIT/SUBJECT_SPLIT.csv`."""
    with tarfile.open(path, "w") as archive:
        for subject in names or subjects("mmlu"):
            for split, count in (("dev", 5), ("val", 1), ("test", rows)):
                lines = [
                    [
                        f"Which, of {subject},\nis {number}?",
                        *("one", "two, 2", 'a "third"', "4", "ABCD"[number % 4]),
                    ]
                    for number in range(count)
                ]
                _add(archive, f"data/{split}/{subject}_{split}.csv", _csv(lines))
        _add(archive, "data/README.txt", b"not data")
    return path


def ceval(path: Path, *, names: list[str] | None = None) -> Path:
    """`ceval-exam.zip`: `SPLIT/SUBJECT_SPLIT.csv` with a header; the test split has no answers."""
    common = ["id", "question", "A", "B", "C", "D"]
    headers = {
        "dev": [*common, "answer", "explanation"],
        "val": [*common, "answer"],
        "test": common,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for subject in names or subjects("ceval"):
            for split, header in headers.items():
                lines = [
                    [
                        str(n),
                        f"{subject} 的第{n}题是？",
                        "甲",
                        "乙",
                        "丙",
                        "丁",
                        "ABCD"[n % 4],
                        "因为",
                    ]
                    for n in range(5)
                ]
                content = _csv([header, *(line[: len(header)] for line in lines)])
                archive.writestr(f"{split}/{subject}_{split}.csv", content)
    return path


def cmmlu(path: Path) -> Path:
    """`cmmlu_v1_0_1.zip`: `SPLIT/SUBJECT.csv` whose first column has no name."""
    with zipfile.ZipFile(path, "w") as archive:
        for subject in subjects("cmmlu"):
            for split in ("dev", "test"):
                lines = [
                    [str(n), f"第{n}题？", "甲", "乙", "丙", "丁", "DCBA"[n % 4]] for n in range(5)
                ]
                header = ["", "Question", "A", "B", "C", "D", "Answer"]
                archive.writestr(f"{split}/{subject}.csv", _csv([header, *lines]))
        archive.writestr("__MACOSX/test/._anatomy.csv", b"\x00\x05")
    return path


def boolq(folder: Path) -> Path:
    """`dev.jsonl` alone, as most people have it."""
    rows = [
        {
            "question": f"is {number} even",
            "title": "Parity",
            "answer": number % 2 == 0,
            "passage": f"The number {number} is {'even' if number % 2 == 0 else 'odd'}.",
        }
        for number in range(6)
    ]
    return _jsonl(folder / "dev.jsonl", rows)


def bbh(folder: Path) -> Path:
    """The folder `bbh` of JSON files with a canary and a list of examples."""
    for subject in subjects("bbh"):
        examples = [{"input": f"{subject} {n}?", "target": "(A)"} for n in range(2)]
        value = {"canary": "do not train on this", "examples": examples}
        folder.mkdir(exist_ok=True)
        (folder / f"{subject}.json").write_text(json.dumps(value))
    return folder


def agieval(folder: Path) -> Path:
    """The folder `v1` of JSON lines; cloze exams have answers, the others options and labels."""
    for subject in subjects("agieval"):
        cloze = subject in ("math", "gaokao-mathcloze")
        several = subject.startswith("jec-qa")
        row = {
            "passage": "Text." if subject == "lsat-rc" else None,
            "question": "How many?",
            "options": None if cloze else ["(A)one", "(B)two", "(C)three", "(D)four"],
            "label": None if cloze else "BD" if several else "C",
            "answer": "\\frac{1}{2}" if cloze else None,
            "other": None,
        }
        _jsonl(folder / f"{subject}.jsonl", [row, row])
    return folder


def humaneval(path: Path) -> Path:
    """`HumanEval.jsonl.gz` with two problems."""
    rows = [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": f'def add{number}(x):\n    """Add {number} to x."""\n',
            "entry_point": f"add{number}",
            "canonical_solution": f"    return x + {number}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {number + 1}\n",
        }
        for number in range(2)
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def mbpp(folder: Path) -> Path:
    """`mbpp.jsonl` with the first and last problem of each split, and `sanitized-mbpp.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = [
        {
            "text": f"Write a function that adds {number} to a number.",
            "code": f"def add(x):\r\n  return x + {number}",
            "task_id": number,
            "test_setup_code": "",
            "test_list": [f"assert add({x}) == {x + number}" for x in (1, 2, 3)],
            "challenge_test_list": [],
        }
        for number in (1, 10, 11, 510, 511, 600, 601, 974)
    ]
    (folder / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    checked = [
        {
            "source_file": "Benchmark Questions Verification V2.ipynb",
            "task_id": row["task_id"],
            "prompt": row["text"],
            "code": row["code"],
            "test_imports": [],
            "test_list": row["test_list"],
        }
        for row in problems[::2]
    ]
    (folder / "sanitized-mbpp.json").write_text(json.dumps(checked, indent=2))
    return folder


def gsm8k(folder: Path) -> Path:
    """`train.jsonl` and `test.jsonl`."""
    for split, count in (("train", 8), ("test", 3)):
        rows = [
            {
                "question": f"Ann has {n} eels and gets 2. How many has she?",
                "answer": f"{n}+2=<<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}",
            }
            for n in range(count)
        ]
        _jsonl(folder / f"{split}.jsonl", rows)
    return folder


def hellaswag(folder: Path, *, rows: int = 5) -> Path:
    """`hellaswag_val.jsonl`."""
    written: list[dict[str, object]] = [
        {
            "ind": number,
            "activity_label": "Cooking" if rows == 5 else f"{number} women cook",
            "ctx_a": "A woman stands in a kitchen." + " Then in another." * (0 if rows == 5 else 6),
            "ctx_b": "she",
            "ctx": "A woman stands in a kitchen. she",
            "split": "val",
            "split_type": "indomain",
            "label": number % 4,
            "endings": ["cuts an onion.", "flies away [title] up.", "is a car.", "sings loudly."],
            "source_id": f"activitynet~v_{number}",
        }
        for number in range(rows)
    ]
    return _jsonl(folder / "hellaswag_val.jsonl", written)


def needlebench(folder: Path) -> Path:
    """`needles.jsonl`, `PaulGrahamEssays.jsonl`, `zh_finance.jsonl`, and one that is unused."""
    needles = [
        {
            "needle": f"The hidden {thing} is buried on {place} Island.",
            "arg1": f"hidden {thing}",
            "arg2": f"{place} Island",
            "retrieval_question": f"Where is the hidden {thing} buried? "
            f"Please answer in the format 'The hidden {thing} is buried on _____.'",
            "language": "English",
        }
        for thing, place in (("parcel", "Emerald"), ("globe", "Tiger"), ("rum", "Storm"))
    ]
    needles.append(
        {
            "needle": "宝藏埋在翡翠岛。",
            "arg1": "宝藏",
            "arg2": "翡翠岛",
            "retrieval_question": "宝藏埋在哪里？请按照“宝藏埋在_____。”的格式回答。",
            "language": "Chinese",
        }
    )
    _jsonl(folder / "needles.jsonl", needles)
    essays = [f"Essay {number}. " + "One should write. " * 60 for number in range(12)]
    _jsonl(folder / "PaulGrahamEssays.jsonl", [{"text": text} for text in essays])
    finance = [f"第{number}篇。" + "今天股市上涨。" * 60 for number in range(12)]
    _jsonl(folder / "zh_finance.jsonl", [{"text": text} for text in finance])
    _jsonl(folder / "zh_movie.jsonl", [{"text": "电影"}])
    return folder


def _jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def _csv(lines: list[list[str]]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(lines)
    return stream.getvalue().encode()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
