import json
import re
import sys
from dataclasses import dataclass

import pytest

from llm_eval.edge.perplexity import DocumentChoice, ModelChoice, run
from llm_eval.edge.scorers import open_scorer
from llm_eval.errors import EvalError


@pytest.fixture
def provider(scorer_site, monkeypatch):
    monkeypatch.syspath_prepend(scorer_site)
    yield
    sys.modules.pop("fake_scorer", None)


def _open(name, model):
    return open_scorer(name, model, device="cpu", dtype="auto", batch_size=1, max_length=None)


def test_a_scorer_by_name_scores_documents_in_batches(provider, corpus, tmp_path):
    documents = DocumentChoice(inputs=(corpus,), pattern="*.txt", text_key="text", limit=None)
    model = ModelChoice(
        model=tmp_path / "any",
        scorer="chars",
        device="cpu",
        dtype="auto",
        batch_size=3,
        max_length=None,
    )
    outcome = run(documents, model, tmp_path / "out", overwrite=False)
    found = outcome.results["results"]["perplexity"]
    assert found["token_perplexity,none"] == pytest.approx(2.718281828459045)
    assert [len(call) for call in sys.modules["fake_scorer"].calls] == [3, 1]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["config"]["model"] == "chars"


def test_an_unknown_scorer_lists_the_choices_and_what_to_install(provider, tmp_path):
    with pytest.raises(EvalError) as caught:
        _open("char", tmp_path)
    said = str(caught.value)
    assert "no scorer named 'char'; did you mean chars?" in said
    (choices,) = re.findall("choices here: ([^;]+);", said)
    assert choices.split(", ")[0] == "hf"
    assert {"hf", "chars", "lost"} <= set(choices.split(", "))
    assert "pip install llm-infer" in said


def test_a_scorer_that_does_not_load_names_its_package(provider, tmp_path):
    with pytest.raises(EvalError, match=r"(?s)scorer lost: .*--force-reinstall fake-scorer"):
        _open("lost", tmp_path)


def test_a_scorer_that_refuses_gives_its_reason(provider, tmp_path):
    with pytest.raises(EvalError, match=r"chars \(fake-scorer\) refuses \S+bad: no weights I know"):
        _open("chars", tmp_path / "bad")


@dataclass
class _Short:
    def loglikelihood_rolling(self, texts):
        return []


def test_a_scorer_that_loses_answers_is_caught():
    from lm_eval.api.instance import Instance

    from llm_eval.harness.models import ScorerLM

    request = Instance("loglikelihood_rolling", {}, ("text",), 0)
    with pytest.raises(EvalError, match="rolling gave 0 answers to 1 requests"):
        ScorerLM(_Short(), batch_size=1).loglikelihood_rolling([request])
