import json
import os
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
    options = {"device": "cpu", "dtype": "auto", "batch_size": 1, "max_length": None}
    return open_scorer(name, model, **options, threads=None)


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


class _Chatting:
    """A scorer with a template of one word."""

    chat_template = "word"

    def apply_chat_template(self, messages, *, add_generation_prompt):
        if not messages:
            raise ValueError("no messages")
        return f"{messages[-1]['content']}|{add_generation_prompt}"


def test_a_scorers_own_chat_template_is_asked():
    from llm_eval.harness.scorer_engine import scorer_engine

    engine = scorer_engine(_Chatting(), batch_size=1)
    messages = [{"role": "user", "content": "hello"}]
    assert engine.apply_chat_template(messages, False) == "hello|False"
    assert engine.chat_template(True) == "word"
    with pytest.raises(EvalError, match="the chat template refuses a prompt: no messages"):
        engine.apply_chat_template([])


def test_a_scorer_without_a_chat_template_says_so():
    from llm_eval.harness.scorer_engine import scorer_engine

    class Untaught(_Chatting):
        chat_template = None

    for scorer in (_Short(), Untaught()):
        engine = scorer_engine(scorer, batch_size=1)
        with pytest.raises(EvalError, match="the scorer has no chat template for this model"):
            engine.apply_chat_template([{"role": "user", "content": "hello"}])


PROCESS = """
import os

class Scorer:
    chat_template = "word"
    def __init__(self, threads):
        self.told = f"{os.getpid()} {threads}"
    def apply_chat_template(self, messages, *, add_generation_prompt):
        return self.told
    def generate(self, requests):
        return [self.told for _ in requests]

def open_scorer(model, *, device, dtype, batch_size, max_length, threads):
    return Scorer(threads)
"""


def test_with_several_processes_no_scorer_is_opened_in_the_one_that_plans(
    scorer_site, monkeypatch, tmp_path
):
    from llm_eval.edge.engines import EngineChoice, Engines

    (scorer_site / "fake_scorer.py").write_text(PROCESS)
    monkeypatch.syspath_prepend(scorer_site)
    choice = EngineChoice(
        scorer="chars", model=tmp_path, device="cpu", dtype="auto", batch_size=1, max_length=None,
        threads=3, base_url=None, retries=0,
    )  # fmt: skip
    requests = [(f"text {number}", {}) for number in range(100)]
    with Engines(choice, num_processes=2) as engines:
        said = {engines.engine.apply_chat_template([])}
        works = list(engines.engine.plan("generate_until", requests))
        for work, answers in engines.scheduler.answers(works):
            assert len(answers) == len(work.indices)
            said |= set(answers)
    assert sorted(index for work in works for index in work.indices) == list(range(100))
    assert "fake_scorer" not in sys.modules
    processes, threads = zip(*(text.split() for text in said), strict=True)
    assert str(os.getpid()) not in processes
    assert set(threads) == {"3"}
