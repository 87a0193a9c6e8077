"""Output into a pipe that nobody reads any more, as in `llm-infer … | head -c 1`."""

import json
import os
import subprocess

import pytest

from server_process import ECHO, LLM_INFER, served


@pytest.fixture(scope="module")
def engine():
    with served(ECHO) as server:
        yield ("--engine", f"openai:{server.url}/v1")


def _cut(command, *, stdin=""):
    """Exit code and stderr of a command whose first byte alone is read."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [LLM_INFER, *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    process.stdin.write(stdin)
    process.stdin.flush()
    os.read(reading, 1)
    os.close(reading)
    _, said = process.communicate("more\n" * 3 if stdin else None, timeout=60)
    return process.returncode, said


@pytest.mark.parametrize(
    ("command", "stdin"),
    [
        (("generate", "echo", "--prompt", "ab", "--max-new-tokens", 2000), ""),
        (("chat", "echo", "--max-new-tokens", 2000), "ab\n"),
        (("bench", "echo", "--prompt-tokens", 2, "--new-tokens", 8, "--requests", 2), ""),
    ],
    ids=["generate", "chat", "bench"],
)
def test_a_command_that_nobody_reads_ends_without_a_word(engine, command, stdin):
    code, said = _cut((*command, *engine), stdin=stdin)
    assert code != 0
    assert "roken" not in said
    assert "Error" not in said
    assert "Traceback" not in said


def test_a_model_of_this_process_ends_without_a_word(models):
    options = ("--prompt", "def read(", "--max-new-tokens", 50, "--device", "cpu")
    code, said = _cut(("generate", models["qwen3"], *options))
    assert code != 0
    assert "roken" not in said
    assert "Traceback" not in said


def test_answers_in_a_file_are_complete_when_nobody_reads_what_is_said(engine, tmp_path):
    prompts, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{text}"}}\n' for text in ("ab", "cd")))
    reading, writing = os.pipe()
    os.close(reading)
    files = ("--input", prompts, "--output", output, "--max-new-tokens", "4")
    command = [LLM_INFER, "generate", "echo", *map(str, files), *engine]
    subprocess.run(command, stdout=writing, stderr=subprocess.STDOUT, check=False, timeout=60)
    os.close(writing)
    assert [json.loads(line)["text"] for line in output.open()] == ["abab", "cdcd"]
