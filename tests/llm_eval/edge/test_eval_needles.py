"""`llm-eval needlebench` on files in the original layout."""

import json

import pytest
from click.testing import CliRunner

import original_benchmarks as original
from llm_eval.cli import main
from llm_eval.edge.importing import import_data
from tiny_lm import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("needles") / "model", "qwen3", context=4096)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("needles_data")
    source = original.needlebench(root / "needlebench")
    import_data("needlebench", [source], root / "data", partial=False, overwrite=False)
    return root / "data"


def _run(*words):
    return CliRunner().invoke(main, ["needlebench", *map(str, words)])


def test_each_length_and_depth_has_its_score(model, data, tmp_path, monkeypatch, caplog):
    """A model that quotes what stands in the middle of its prompt finds what is hidden there."""
    from llm_eval.harness.journaled import JournaledLM

    def quote(self, requests):
        prompts = [request.args[0].partition("\n\nNow,")[0] for request in requests]
        documents = [prompt.partition("by the user is ")[2] for prompt in prompts]
        return [text[len(text) // 2 - 50 : len(text) // 2 + 50] for text in documents]

    monkeypatch.setattr(JournaledLM, "generate_until", quote)
    out = tmp_path / "out"
    asked = ("--model", model, "--data", data, "--output", out, "--language", "en", "--limit", 44)
    found = _run(*asked)
    assert found.exit_code == 0, found.output
    assert "same number of documents" not in caplog.text
    results = json.loads((out / "results.json").read_text())
    assert results["config"]["prompt"] == "needlebench/default/en@1"
    scores = results["results"]["needlebench_en"]
    assert scores["score_depth_50,none"] == 100
    assert scores["score_depth_0,none"] < 20
    assert 100 / 11 < scores["score_length_4000,none"] < 100 / 11 + 20
    assert scores["score,none"] == pytest.approx(
        sum(scores[f"score_length_{n},none"] for n in (1000, 2000, 3000, 4000)) / 4
    )
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [s["doc"]["length"] for s in samples[::11]] == [1000, 2000, 3000, 4000]
    assert _run(*asked).stderr.endswith("already finished\n")
    assert "size: was '4k', now '8k'" in _run(*asked, "--size", "8k").output


def test_a_tiny_model_answers_in_both_languages_and_prompts_keep_their_length(
    model, data, tmp_path
):
    from transformers import AutoTokenizer

    out = tmp_path / "out"
    found = _run("--model", model, "--data", data, "--output", out, "--limit", 1)
    assert found.exit_code == 0, found.output
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert {s["task"] for s in samples} == {"needlebench_en", "needlebench_zh"}
    tokenizer = AutoTokenizer.from_pretrained(model)
    for sample in samples:
        ((prompt, _),) = sample["arguments"]
        context = prompt.rpartition("\n\n")[0].partition(
            "is " if sample["task"][-2:] == "en" else "档是"
        )
        spare = 500 if sample["task"] == "needlebench_en" else 200
        assert sample["doc"]["needle"] in prompt
        # A character that a cut leaves half of is written as U+FFFD, three tokens here.
        assert abs(len(tokenizer.encode(context[2])) - (1000 - spare)) <= 12
        assert 0 <= sample["score"] <= 100


def test_a_context_that_would_cut_the_prompt_is_refused(model, data, tmp_path):
    found = _run("--model", model, "--data", data, "--output", tmp_path / "out", "--size", "8k")
    assert found.exit_code == 1
    assert "longest prompt has 8000 tokens, the context 4096" in found.output
    short = ("--model", model, "--data", data, "--output", tmp_path / "o2", "--max-length", 900)
    assert "has 4000 tokens, the context 900" in _run(*short).output


def test_the_data_folder_must_be_named(model, tmp_path):
    found = _run("--model", model, "--output", tmp_path / "out")
    assert found.exit_code == 2
    assert "Missing option '--data'" in found.output
