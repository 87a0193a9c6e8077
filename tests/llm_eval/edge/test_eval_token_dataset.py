"""Perplexity of token datasets, read by the contract in tests/contracts/token_dataset."""

import json
import math
import shutil
from pathlib import Path

import pytest

from llm_eval.edge.perplexity import DocumentChoice, ModelChoice, run
from llm_eval.edge.token_dataset import check_tokenizer, read_documents, stem_of
from llm_eval.errors import EvalError

CONTRACT = Path(__file__).parents[2] / "contracts" / "token_dataset"
STEM = "tiny_text_document"
GOLDEN = CONTRACT / "golden" / STEM
DOCUMENTS = json.loads((CONTRACT / "golden" / "documents.json").read_text())
CASES = json.loads((CONTRACT / "broken" / "cases.json").read_text())
# Of the pair: what a manifest says beside the tokenizer is not used.
PAIR = [
    name
    for name, case in CASES.items()
    if not name.startswith("manifest") and "checksum" not in name and name != "out_of_vocabulary"
]


def _run(inputs, model, output, **changes):
    documents = DocumentChoice(inputs=inputs, pattern="*.txt", text_key="text", limit=None)
    settings = {"scorer": "hf", "device": "cpu", "dtype": "float32", "batch_size": 2}
    choice = ModelChoice(model=model, max_length=8, **settings | changes)
    return run(documents, choice, output, overwrite=False)


def test_documents_are_the_ids_of_the_golden_sample():
    for path in (GOLDEN, GOLDEN.with_suffix(".idx"), GOLDEN.with_suffix(".bin")):
        found = [[int(word) for word in d.text.split()] for d in read_documents(stem_of(path))]
        assert found == DOCUMENTS


def test_perplexity_of_tokens_is_that_of_transformers_by_hand(models, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32).eval()
    # Windows hold 8 tokens; the documents have 6 to 8 and the end token (0) stands before each.
    total = 0.0
    for tokens in DOCUMENTS:
        with torch.no_grad():
            logprobs = model(torch.tensor([[0, *tokens[:-1]]])).logits[0].double().log_softmax(-1)
        total += sum(logprobs[place, token].item() for place, token in enumerate(tokens))

    # Without the manifest: the sample is of another tokenizer.
    for suffix in (".bin", ".idx"):
        shutil.copy(GOLDEN.with_suffix(suffix), tmp_path)
    outcome = _run((tmp_path / STEM,), models["llama"], tmp_path / "out")

    found = outcome.results["results"]["perplexity"]
    expected = math.exp(-total / sum(map(len, DOCUMENTS)))
    assert found["token_perplexity,none"] == pytest.approx(expected, rel=1e-5)
    assert not any(name.startswith(("word", "byte", "bits")) for name in found)


def test_tokens_of_another_tokenizer_are_refused(models, tmp_path):
    with pytest.raises(EvalError, match=r"ef43fde1afc7.*is .*score the model that"):
        _run((GOLDEN,), models["llama"], tmp_path)
    check_tokenizer(GOLDEN, CONTRACT / "golden" / "tokenizer")


@pytest.mark.parametrize("case", PAIR)
def test_a_broken_pair_is_refused(case):
    with pytest.raises(EvalError, match=f"{case}/{STEM}"):
        list(read_documents(CONTRACT / "broken" / case / STEM))


def test_text_beside_tokens_is_refused(models, corpus, tmp_path):
    with pytest.raises(EvalError, match="1 of 2 inputs are token datasets"):
        _run((GOLDEN, corpus), models["llama"], tmp_path)
