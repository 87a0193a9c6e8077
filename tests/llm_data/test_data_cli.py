import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from llm_data.cli import main

HEAVY = ("torch", "transformers", "pyarrow", "numpy", "tokenizers", "rich", "lm_eval")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def imported_by(code):
    """Names of the heavy modules that `code` imports in a fresh interpreter."""
    report = f"import sys; {code}; print([m for m in {HEAVY} if m in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]


@pytest.fixture
def prepared(corpus, tokenizer, tmp_path):
    """A dataset made by the command, as the README has it."""
    result = run(
        *("preprocess", corpus, "--tokenizer", tokenizer, "--output", tmp_path / "d/train"),
        *("--append-eod", "--workers", 1),
    )
    assert result.exit_code == 0, result.output
    return tmp_path / "d/train"


def test_help_and_import_load_nothing_heavy():
    assert imported_by("import llm_data.cli") == "[]"
    assert imported_by("import llm_data.api") == "['numpy']"


def test_a_whole_run_loads_no_torch(corpus, tokenizer, tmp_path):
    arguments = ["preprocess", corpus, "--tokenizer", tokenizer, "--output", tmp_path / "d"]
    code = (
        "from llm_data.cli import main; "
        f"main({[str(a) for a in arguments]!r}, standalone_mode=False)"
    )
    assert imported_by(code) == "['numpy', 'tokenizers', 'rich']"


@pytest.mark.parametrize("command", main.commands)
def test_help_shows_a_runnable_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: llm-data {command} " in result.output


def test_the_names_of_mindspeed_are_accepted(corpus, tokenizer, tmp_path):
    result = run(
        *("preprocess", "--input", corpus, "--tokenizer-name-or-path", tokenizer),
        *("--output-prefix", tmp_path / "d", "--json-keys", "text", "--workers", 1),
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "d_text_document.idx").exists()


def test_a_rerun_says_already_done(prepared, corpus, tokenizer):
    result = run(
        "preprocess", corpus, "--tokenizer", tokenizer, "--output", prepared, "--append-eod"
    )
    assert (result.exit_code, "already done" in result.output) == (0, True)


def test_verify_passes_and_fails_with_the_reason(prepared):
    assert run("verify", prepared).exit_code == 0
    path = prepared.with_name("train_text_document.bin")
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    result = run("verify", prepared)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {path}: sha256 ")


def test_inspect_prints_counts_and_text(prepared, corpus, tokenizer):
    result = run("inspect", prepared, "--tokenizer", tokenizer, "--documents", 1)
    assert result.exit_code == 0, result.output
    assert "3,000" in result.output
    first = json.loads(corpus.read_text().splitlines()[0])["text"]
    assert first.split()[0] in result.output
    assert "<|endoftext|>" in result.output


def test_inspect_refuses_another_tokenizer(prepared, bytes_tokenizer):
    result = run("inspect", prepared, "--tokenizer", bytes_tokenizer)
    assert result.exit_code == 1
    assert "the text would be wrong" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            [
                "preprocess",
                "{corpus}",
                "--tokenizer",
                "{tokenizer}",
                "--output",
                "d",
                "--wrokers",
                "2",
            ],
            2,
            "Did you mean",
        ),
        (["preprocess", "--tokenizer", "{tokenizer}", "--output", "d"], 2, "no INPUT given"),
        (
            ["preprocess", "nowhere", "--tokenizer", "{tokenizer}", "--output", "d"],
            2,
            "nowhere: no such file",
        ),
        (
            ["preprocess", "{corpus}", "--tokenizer", "nowhere", "--output", "d"],
            2,
            "no such tokenizer",
        ),
        (
            [
                "preprocess",
                "{corpus}",
                "--tokenizer",
                "{tokenizer}",
                "--output",
                "d",
                "--workers",
                "0",
            ],
            2,
            "--workers 0, want ≥ 1",
        ),
        (
            [
                "preprocess",
                "{corpus}",
                "--tokenizer",
                "{tokenizer}",
                "--output",
                "d",
                "--key",
                "txt",
            ],
            1,
            "no key 'txt'; the record has id, text; did you mean 'text'?",
        ),
        (
            ["preprocess", "{corpus}", "--tokenizer", "{tokenizer}", "--output", "{corpus}/d"],
            1,
            "Error: ",
        ),
        (["verify", "nowhere"], 1, "no token dataset"),
        (["inspect", "nowhere", "--tokenizer", "{tokenizer}"], 1, "no token dataset"),
        (["train-tokenizer", "{corpus}", "--output", "t", "--vocab-size", "9"], 2, "want ≥ 258"),
    ],
)
def test_errors_are_one_line_with_the_right_exit_code(
    corpus, tokenizer, tmp_path, monkeypatch, arguments, code, says
):
    monkeypatch.chdir(tmp_path)
    result = run(*(text.format(corpus=corpus, tokenizer=tokenizer) for text in arguments))
    assert result.exit_code == code, result.output
    assert says in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []
