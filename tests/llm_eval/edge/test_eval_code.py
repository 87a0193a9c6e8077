"""HumanEval from its original file to pass@1, its programs in the sandbox."""

import json
import sys

import pytest

import original_benchmarks as original
from llm_eval.benchmarks import choose
from llm_eval.edge import benchmark
from llm_eval.edge.importing import import_data
from llm_eval.edge.perplexity import ModelChoice
from llm_eval.edge.sandbox.outside import Sandbox
from llm_eval.errors import EvalError
from llm_eval.harness.code import build_predictions_instruct, functions

CODER = '''
import re

class Coder:
    """Solves the first problem, and for the second writes what would harm."""
    def generate(self, requests):
        calls.append(requests)
        return [
            f"    return x + 0\\n" if "Add 0" in context
            else "    import subprocess; subprocess.run(['touch', TOUCHED]); return x + 1\\n"
            for context, _, _ in requests
        ]

calls = []

def open_scorer(model, **options):
    return Coder()
'''


@pytest.fixture
def coder(tmp_path, monkeypatch):
    """An installed scorer that writes programs."""
    site = tmp_path / "site"
    info = site / "fake_coder-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-coder\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[llm_eval.scorers]\ncoder = fake_coder:open_scorer\n")
    module = CODER.replace("TOUCHED", repr(str(tmp_path / "touched")))
    (site / "fake_coder.py").write_text(module)
    monkeypatch.syspath_prepend(site)
    yield tmp_path / "touched"
    sys.modules.pop("fake_coder", None)


def _run(tmp_path, output, **changes):
    data = tmp_path / "data"
    if not data.exists():
        source = original.humaneval(tmp_path / "HumanEval.jsonl.gz")
        import_data("humaneval", [source], data, partial=False, overwrite=False)
    name, variant = choose("humaneval", "default", None)
    choice = benchmark.TaskChoice(
        names=variant.tasks, include_path=None, num_fewshot=None, limit=None, data=data,
        prompt=name, **changes,
    )  # fmt: skip
    model = ModelChoice(
        model=tmp_path, scorer="coder", device="cpu", dtype="auto", batch_size=2, max_length=None
    )
    return benchmark.run(choice, model, output, overwrite=False)


def _require_sandbox():
    try:
        with Sandbox():
            pass
    except EvalError as error:
        pytest.skip(str(error))


def test_programs_are_judged_in_the_sandbox(coder, tmp_path):
    _require_sandbox()
    outcome = _run(tmp_path, tmp_path / "out")
    assert outcome.results["results"]["humaneval"]["pass@1,create_test"] == 0.5
    assert outcome.results["config"]["prompt"] == "humaneval/default@1"
    assert not coder.exists()
    samples = [json.loads(s) for s in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [sample["pass@1"] for sample in samples] == [1.0, 0.0]


def test_unsafe_runs_them_as_they_are(coder, tmp_path):
    outcome = _run(tmp_path, tmp_path / "out", unsafe=True)
    assert outcome.results["results"]["humaneval"]["pass@1,create_test"] == 1.0
    assert coder.exists()


def test_other_tasks_that_run_code_are_refused():
    class Code:
        UNSAFE_CODE = True

    class Manager:
        def build(self, names):
            return [Code()]

        def load(self, built):
            return {"tasks": {"mbpp": built[0]}}

    choice = benchmark.TaskChoice(names=("mbpp",), include_path=None, num_fewshot=None, limit=None)
    with pytest.raises(EvalError, match=r"mbpp: runs what the model writes, .* --unsafe"):
        benchmark._load(choice, Manager())


def test_pass_at_k_is_the_estimate_of_its_paper():
    """By hand, equation 1 of Chen et al. 2021: n=4, c=2: 1 - C(2,2)/C(4,2) = 5/6 for k=2."""
    pass_at_k = functions(lambda program: "good" in program)["humaneval/utils.pass_at_k"]
    found = pass_at_k(["check()"], [["good 1", "bad", "good 2", "bad"]], k=[1, 2, 8])
    assert found == {"pass@1": pytest.approx(0.5), "pass@2": pytest.approx(5 / 6)}


def test_a_chat_answer_ends_with_its_block_of_code():
    docs = [{"prompt": "def f():\n"}]
    assert build_predictions_instruct([["    return 1\n```\nDone."]], docs) == [
        ["def f():\n    return 1\n"]
    ]
