import json
import math
import re

import pytest

from llm_eval.edge.perplexity import DocumentChoice, ModelChoice, run
from llm_eval.errors import EvalError

CONTEXT = 32


def documents(*inputs, pattern="*.txt"):
    return DocumentChoice(inputs=inputs, pattern=pattern, text_key="text", limit=None)


def choice(model, **changes):
    settings = {
        "model": model,
        "scorer": "hf",
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 4,
        "max_length": None,
    }
    return ModelChoice(**settings | changes)


def by_hand(model_folder, texts, context=CONTEXT):
    """Log-probability of each text in rolling windows, with transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    scores = []
    for text in texts:
        # The end token stands before the first; each window predicts what none before it did,
        # from as many tokens as fit.
        tokens = [tokenizer.eos_token_id, *tokenizer.encode(text)]
        total = 0.0
        for start in range(1, len(tokens), context):
            end = min(start + context, len(tokens))
            seen = tokens[max(0, end - 1 - context) : end]
            with torch.no_grad():
                logits = model(torch.tensor([seen[:-1]])).logits[0].double()
            logprobs = logits.log_softmax(-1)
            for offset in range(1, end - start + 1):
                total += logprobs[len(seen) - 1 - offset, seen[-offset]].item()
        scores.append((total, len(tokens) - 1))
    return scores


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_perplexity_is_that_of_transformers_by_hand(models, corpus, tmp_path, family, batch_size):
    model = models[family]
    names = ["a.txt", "b.txt", "sub/c.txt", "sub/d.txt"]
    texts = [(corpus / name).read_text() for name in names]
    expected = by_hand(model, texts)
    assert max(tokens for _, tokens in expected) > 3 * CONTEXT > 3 < min(t for _, t in expected)

    outcome = run(
        documents(corpus), choice(model, batch_size=batch_size), tmp_path / "out", overwrite=False
    )

    lines = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["doc"]["name"] for sample in samples] == names
    for sample, (logprob, _) in zip(samples, expected, strict=True):
        assert sample["filtered_resps"][0] == pytest.approx(logprob, rel=1e-5)
    logprob = sum(score for score, _ in expected)
    num_tokens = sum(tokens for _, tokens in expected)
    num_bytes = sum(len(text.encode()) for text in texts)
    num_words = sum(len(re.split(r"\s+", text)) for text in texts)
    found = outcome.results["results"]["perplexity"]
    for name, count in {"token": num_tokens, "byte": num_bytes, "word": num_words}.items():
        value = found[f"{name}_perplexity,none"]
        assert value == pytest.approx(math.exp(-logprob / count), rel=1e-5)
    bits = -logprob / num_bytes / math.log(2)
    assert found["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)


def test_a_shorter_window_is_another_score(models, corpus, tmp_path):
    short = choice(models["qwen3"], max_length=8)
    run(documents(corpus / "b.txt"), short, tmp_path / "out", overwrite=False)
    ((logprob, _),) = by_hand(models["qwen3"], [(corpus / "b.txt").read_text()], context=8)
    sample = json.loads((tmp_path / "out" / "samples.jsonl").read_text())
    assert sample["filtered_resps"][0] == pytest.approx(logprob, rel=1e-5)


def test_a_window_longer_than_the_context_is_refused(models, corpus, tmp_path):
    with pytest.raises(EvalError, match="--max-length 33: the model's context is 32"):
        run(documents(corpus), choice(models["llama"], max_length=33), tmp_path, overwrite=False)


def test_text_without_spaces_overflows_to_null_not_to_a_crash(models, tmp_path):
    (tmp_path / "zh.txt").write_text("你好世界" * 100)
    outcome = run(
        documents(tmp_path / "zh.txt"), choice(models["qwen3"]), tmp_path / "out", overwrite=False
    )
    found = outcome.results["results"]["perplexity"]
    assert found["word_perplexity,none"] is None
    assert found["token_perplexity,none"] > 1


def test_a_finished_run_is_read_back_without_its_model(models, corpus, tmp_path, monkeypatch):
    arguments = documents(corpus), choice(models["llama"]), tmp_path / "out"
    first = run(*arguments, overwrite=False)
    monkeypatch.setattr("llm_eval.edge.model_folder.load", None)
    again = run(*arguments, overwrite=False)
    assert (first.was_finished, again.was_finished) == (False, True)
    assert first.results == again.results


def test_other_weights_in_the_same_place_are_noticed(corpus, tmp_path):
    from tiny_lm import make_model

    make_model(tmp_path / "m", "llama", seed=1)
    arguments = documents(corpus), choice(tmp_path / "m"), tmp_path / "out"
    run(*arguments, overwrite=False)
    make_model(tmp_path / "m", "llama", seed=2)
    with pytest.raises(EvalError, match="model_digest: was"):
        run(*arguments, overwrite=False)
    assert not run(*arguments, overwrite=True).was_finished
