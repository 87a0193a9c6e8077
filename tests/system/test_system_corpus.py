"""The quickstart's corpus: the same split every time, whole files, nothing in both parts."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "examples" / "quickstart" / "corpus.py"


def collect(output: Path, *options: str) -> dict[str, bytes]:
    subprocess.run([sys.executable, str(CORPUS), str(output), *options], check=True)
    files = sorted(path for path in output.rglob("*.py"))
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("corpus") / "corpus"
    collect(output)
    return output


def test_files_are_the_librarys_own_bytes(corpus: Path) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    for part in ("train", "heldout"):
        for path in (corpus / part).rglob("*.py"):
            assert path.read_bytes() == (library / path.relative_to(corpus / part)).read_bytes()


def test_no_file_is_in_both_parts(corpus: Path) -> None:
    train, heldout = (
        {path.relative_to(corpus / part) for path in (corpus / part).rglob("*.py")}
        for part in ("train", "heldout")
    )
    assert train
    assert heldout
    assert not train & heldout


def test_sizes_are_as_asked(corpus: Path) -> None:
    facts = json.loads((corpus / "corpus.json").read_text())
    found = sum(path.stat().st_size for path in (corpus / "heldout").rglob("*.py"))
    assert 90_000 < found <= 120_000
    assert facts["heldout"]["bytes"] == found
    assert 5_000_000 < facts["train"]["bytes"] <= 20_000_000


def test_the_split_is_the_same_every_time(tmp_path: Path) -> None:
    first = collect(tmp_path / "a", "--train-bytes", "300000", "--heldout-bytes", "20000")
    second = collect(tmp_path / "b", "--train-bytes", "300000", "--heldout-bytes", "20000")
    assert first == second


def test_nothing_half_copied_has_the_final_name(tmp_path: Path) -> None:
    (tmp_path / "corpus.tmp" / "train").mkdir(parents=True)
    (tmp_path / "corpus.tmp" / "train" / "left_over.py").write_text("x = 1\n")
    files = collect(tmp_path / "corpus", "--train-bytes", "300000")
    assert "train/left_over.py" not in files
    assert not (tmp_path / "corpus.tmp").exists()
