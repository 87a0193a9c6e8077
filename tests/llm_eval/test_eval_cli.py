import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from llm_eval.cli import main


def _run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_perplexity_before_and_after_and_their_comparison(models, corpus, tmp_path):
    for name, family in (("before", "llama"), ("after", "qwen3")):
        result = _run(
            *("perplexity", corpus, "--pattern", "*.txt", "--model", models[family]),
            *("--output", tmp_path / name, "--device", "cpu"),
        )
        assert result.exit_code == 0, result.output
        assert "token_perplexity" in result.stdout
    result = _run("compare", tmp_path / "before", tmp_path / "after")
    assert result.exit_code == 0
    values = [
        json.loads((tmp_path / name / "results.json").read_text())["results"]["perplexity"]
        for name in ("before", "after")
    ]
    difference = values[1]["bits_per_byte,none"] - values[0]["bits_per_byte,none"]
    (line,) = [line for line in result.stdout.splitlines() if "bits_per_byte" in line]
    assert f"{difference:+.6g}" in line
    assert line.endswith("better" if difference < 0 else "worse")


def test_a_user_error_is_one_line_and_exit_code_1(corpus, tmp_path):
    result = _run("perplexity", corpus, "--model", tmp_path / "no", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path / 'no'}: no such model folder\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("perplexity",),
        ("perplexity", "x", "--output", "o"),
        ("perplexity", "x", "--model", "m", "--output", "o", "--device", "tpu"),
        ("perplexity", "x", "--model", "m", "--output", "o", "--batch-size", "0"),
        ("perplexity", "x", "--model", "m", "--output", "o", "--dtype", "int8"),
        ("run", "--model", "m", "--output", "o"),
        ("compare", "one"),
    ],
)
def test_usage_errors_exit_2(arguments):
    assert _run(*arguments).exit_code == 2


def test_list_finds_by_pattern():
    result = _run("list", "hellaswag")
    assert (result.exit_code, result.stdout) == (0, "task   hellaswag\n")
    assert _run("list", "no_such_*").exit_code == 1


def test_comparing_an_unfinished_run_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "journal.jsonl").write_text("")
    result = _run("compare", tmp_path / "a", tmp_path / "a")
    assert result.exit_code == 1
    assert "its run is unfinished" in result.stderr


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys, llm_eval, llm_eval.cli, llm_eval.scorer, llm_eval.comparison\n"
        "heavy = {'torch', 'transformers', 'datasets', 'lm_eval', 'pyarrow', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


# As if only `pip install llm-eval` had been run, without its `hf` extra.
BASE_INSTALL = """
import sys, importlib.util as u
find = u.find_spec
hidden = {'torch', 'transformers', 'accelerate', 'safetensors', 'tokenizers'}

class Hide:
    def find_spec(self, name, *rest):
        if name.split('.')[0] in hidden:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Hide())
u.find_spec = lambda name, *a: None if name.split('.')[0] in hidden else find(name, *a)
from llm_eval.cli import main
main()
"""


def _base_install(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", BASE_INSTALL, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def test_the_base_install_scores_with_a_scorer_and_without_torch(scorer_site, corpus, tmp_path):
    found = _base_install(
        *("perplexity", corpus, "--model", tmp_path, "--scorer", "chars"),
        *("--output", tmp_path / "out"),
        PYTHONPATH=str(scorer_site),
    )
    assert found.returncode == 0, found.stderr
    lines = [line.split() for line in found.stdout.splitlines()]
    assert ["perplexity", "token_perplexity", "2.71828", "N/A"] in lines


def test_without_torch_the_hf_engine_says_what_to_install(models, corpus, tmp_path):
    found = _base_install(
        *("perplexity", corpus, "--model", models["llama"], "--output", tmp_path / "out")
    )
    assert found.returncode == 1
    assert found.stderr.endswith("pip install 'llm-eval[hf]'\n"), found.stderr
