"""`generate --logprobs`: expected numbers are those of transformers' logits."""

import json

import pytest
from click.testing import CliRunner

from llm_infer.cli import main

PROMPT = "def read("
SETTINGS = ("--presence-penalty", 1.5, "--frequency-penalty", 0.5, "--logit-bias", "32=4")


def _generate(model, *arguments):
    words = ["generate", str(model), "--device", "cpu", "--max-new-tokens", "8"]
    return CliRunner().invoke(main, [*words, *map(str, arguments)])


def _own(folder, prompt, text_tokens):
    """Log-probabilities [T, V] of transformers where each token of the answer was chosen."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer.encode(prompt)
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *text_tokens]])).logits[0]
    return tokenizer, logits[len(ids) - 1 : -1].log_softmax(-1)


def _tokens(folder, **settings):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = model.generate(ids, do_sample=False, max_new_tokens=8, pad_token_id=0, **settings)
    return found[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("engine", ["native", "transformers"])
def test_each_token_has_its_probability_and_its_rivals(models, engine):
    result = _generate(
        models["qwen3"], "--prompt", PROMPT, "--json", "--logprobs", 2, "--engine", engine
    )
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    tokens = _tokens(models["qwen3"])
    tokenizer, logprobs = _own(models["qwen3"], PROMPT, tokens)
    assert len(answer["logprobs"]) == len(tokens) == 8
    for told, row, token in zip(answer["logprobs"], logprobs, tokens, strict=True):
        best = row.topk(2)
        assert told["token"] == tokenizer.decode([token])
        assert told["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
        rivals = [one["logprob"] for one in told["top_logprobs"]]
        assert rivals == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [one["token"] for one in told["top_logprobs"]] == [
            tokenizer.decode([one]) for one in best.indices.tolist()
        ]


def test_a_file_has_the_same_and_penalties_are_alike_on_both_engines(models, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": PROMPT, "score": 3}) + "\n")
    answers = {}
    for engine in ("native", "transformers"):
        output = tmp_path / f"{engine}.jsonl"
        files = ("--input", tmp_path / "in.jsonl", "--output", output)
        result = _generate(models["qwen3"], *files, "--logprobs", 0, "--engine", engine, *SETTINGS)
        assert result.exit_code == 0, result.output
        answers[engine] = json.loads(output.read_text())
    native, theirs = answers["native"], answers["transformers"]
    assert native["text"] == theirs["text"]
    plain = _generate(models["qwen3"], "--prompt", PROMPT, "--json")
    assert native["text"] != json.loads(plain.stdout)["text"]
    assert [one["logprob"] for one in native["logprobs"]] == pytest.approx(
        [one["logprob"] for one in theirs["logprobs"]], abs=1e-4
    )
    assert native["logprobs"][0]["top_logprobs"] == []
    assert native["score"] == 3


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("--logit-bias", "32=4"), {"sequence_bias": {(32,): 4.0}}),
        (("--repetition-penalty", 1.3), {"repetition_penalty": 1.3}),
    ],
)
def test_the_transformers_engines_penalties_are_those_of_transformers(models, ours, theirs):
    found = _generate(
        models["qwen3"], "--prompt", PROMPT, "--engine", "transformers", "--json", *ours
    )
    tokens = _tokens(models["qwen3"], **theirs)
    assert tokens != _tokens(models["qwen3"])
    tokenizer, _ = _own(models["qwen3"], PROMPT, tokens)
    assert json.loads(found.stdout)["text"] == tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompt", "a", "--logprobs", 1), "--logprobs: only with --json or --output"),
        (("--prompt", "a", "--json", "--logprobs", 21), "21 is not in the range 0<=x<=20"),
    ],
)
def test_wrong_usage_says_why(models, arguments, said):
    found = _generate(models["qwen3"], *arguments)
    assert found.exit_code == 2
    assert said in found.stderr


def test_a_key_that_the_answer_needs_is_refused(models, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "logprobs": 1}\n')
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    found = _generate(models["qwen3"], *files, "--logprobs", 1)
    assert found.exit_code == 1
    assert "'logprobs' is where the answer goes; rename that key" in found.stderr
