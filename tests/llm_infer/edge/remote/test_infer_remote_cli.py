"""`--engine openai:URL`; the server's answers are the prompt, again and again."""

import json

import pytest
from click.testing import CliRunner

from llm_infer.cli import main
from server_process import ECHO, served


@pytest.fixture(scope="module")
def engine():
    with served(ECHO) as server:
        yield f"openai:{server.url}/v1"


def _run(command, engine, *arguments, stdin=None):
    words = [command, "echo", "--engine", engine, *map(str, arguments)]
    return CliRunner().invoke(main, words, input=stdin)


def test_a_prompt_is_streamed_with_the_servers_counts(engine):
    result = _run("generate", engine, "--prompt", "abc", "--max-new-tokens", 7)
    assert result.exit_code == 0, result.output
    assert result.stdout == "abcabca\n"
    url = engine.removeprefix("openai:")
    assert result.stderr.startswith(f"engine: openai: echo at {url}\n3 + 7 tokens")
    assert result.stderr.endswith("ended by length\n")


def test_json_holds_the_same(engine):
    result = _run("generate", engine, "--prompt", "abc", "--max-new-tokens", 4, "--json")
    answer = json.loads(result.stdout)
    assert (answer["text"], answer["num_prompt_tokens"], answer["num_tokens"]) == ("abca", 3, 4)


def test_a_file_of_prompts_is_answered_in_order(engine, tmp_path):
    prompts = [{"id": n, "prompt": f"p{n}-"} for n in range(40)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    result = _run("generate", engine, *files, "--max-new-tokens", 3)
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["text"] for answer in answers] == [f"p{n}-"[:3] for n in range(40)]


def test_one_bad_prompt_leaves_no_output(engine, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    result = _run("generate", engine, *files)
    assert result.exit_code == 1
    assert "in.jsonl:2: http://" in result.stderr
    assert "the prompt is empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_chat_goes_through_the_server(engine):
    result = _run("chat", engine, "--max-new-tokens", 4, stdin="ab\nxyz\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == "abab\nxyzx\n"


def test_bench_measures_a_server(engine):
    result = _run("bench", engine, "--requests", 3, "--new-tokens", 8, "--prompt-tokens", 4)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("one request: first token after ")
    assert lines[1].startswith("3 requests together: first token after ")


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("generate", ("--prompt", "x", "--device", "cpu"), "--device: the server at openai:"),
        ("generate", ("--prompt", "x", "--lora", "y"), "--lora: the server at openai:"),
        ("chat", ("--template", "chatml"), "--template: the server at openai:"),
        ("serve", (), "--engine openai:URL is for generate, chat and bench"),
    ],
)
def test_what_the_server_decides_is_wrong_usage(engine, command, arguments, said):
    result = _run(command, engine, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_log_probabilities_are_those_that_the_server_tells(engine):
    """Of the echo: that of token i is -i, and the next character's -9."""
    given = ("--prompt", "ab", "--max-new-tokens", 3, "--json", "--logprobs", 2)
    result = _run("generate", engine, *given)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["logprobs"]
    assert [(one["token"], one["logprob"]) for one in told] == [("a", -1), ("b", -2), ("a", -3)]
    rivals = [[(one["token"], one["logprob"]) for one in each["top_logprobs"]] for each in told]
    assert rivals == [[("a", -1), ("b", -9)], [("b", -2), ("c", -9)], [("a", -3), ("b", -9)]]
