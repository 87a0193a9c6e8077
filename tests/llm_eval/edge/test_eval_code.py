"""HumanEval from its original file, and MBPP, to pass@1, their programs in the sandbox."""

import json
import shutil
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

import original_benchmarks as original
from llm_eval.benchmarks import choose
from llm_eval.edge import benchmark
from llm_eval.edge.importing import import_data
from llm_eval.edge.perplexity import ModelChoice
from llm_eval.edge.sandbox.outside import Sandbox
from llm_eval.errors import EvalError
from llm_eval.harness.code import CodeEval, code_eval_through

CODER = '''
import re

class Coder:
    """Solves the first problem, and for the second writes what would harm."""
    def generate(self, requests):
        calls.append(requests)
        return [
            "\\n" * is_block  # else lm-eval takes the first word for the block's language
            + program(context.rpartition("Add ")[2][0] == "0", "def add" not in context)
            + "```" * is_block
            for context, _, _ in requests
            for is_block in ["```python" in context]
        ]

calls = []

def program(is_first, is_whole):
    """HumanEval's prompt holds the function's head, MBPP's does not."""
    body = "    return x + 0\\n" if is_first else (
        "    import subprocess; subprocess.run(['touch', TOUCHED]); return x + 1\\n"
    )
    return f"def add(x):\\n{body}" if is_whole else body

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


# The harness' own task files, over rows of ours in the layout of google-research-datasets/mbpp.
MBPP_DATA = """dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
  cache_dir: {folder}/cache
"""


def _mbpp(folder, name):
    """A copy of a shipped task file and of the functions beside it, named `own_…`."""
    import lm_eval

    shipped = Path(lm_eval.__file__).parent / "tasks" / "mbpp"
    folder.mkdir()
    shutil.copy(shipped / "utils.py", folder)
    text = (shipped / f"{name}.yaml").read_text().replace(f"task: {name}", f"task: own_{name}")
    head = "dataset_path: google-research-datasets/mbpp\ndataset_name: full\n"
    assert head in text
    (folder / "task.yaml").write_text(text.replace(head, MBPP_DATA.format(folder=folder)))
    rows = [
        {
            "task_id": number,
            "text": f"Add {number} to a number.",
            "code": f"def add(x):\n    return x + {number}",
            "test_list": [f"assert add({x}) == {x + number}" for x in (1, 2, 3)],
        }
        for number in range(2)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _run_own(tmp_path, name, **changes):
    choice = benchmark.TaskChoice(
        names=(name,), include_path=tmp_path / "own", num_fewshot=None, limit=None, **changes
    )
    model = ModelChoice(
        model=tmp_path, scorer="coder", device="cpu", dtype="auto", batch_size=2, max_length=None
    )
    return benchmark.run(choice, model, tmp_path / "out", overwrite=False).results["results"]


@pytest.mark.parametrize(
    ("name", "key"), [("mbpp", "pass_at_1,none"), ("mbpp_instruct", "pass_at_1,extract_code")]
)
def test_programs_of_mbpp_are_judged_in_the_sandbox(name, key, coder, tmp_path):
    _require_sandbox()
    _mbpp(tmp_path / "own", name)
    assert _run_own(tmp_path, f"own_{name}")[f"own_{name}"][key] == 0.5
    assert not coder.exists()


def test_mbpp_is_imported_and_judged_with_no_network(coder, tmp_path, monkeypatch):
    """`Coder` adds 0 where it is asked to, which is right, and else starts a process."""
    _require_sandbox()
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a socket was opened"))
    source = original.mbpp(tmp_path / "mbpp")
    rows = [json.loads(line) for line in (source / "mbpp.jsonl").read_text().splitlines()]
    rows[2] |= {"text": "Add 0", "test_list": [f"assert add({x}) == {x}" for x in (1, 2, 3)]}
    (source / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_data("mbpp", [source], tmp_path / "data", partial=False, overwrite=False)
    choice = benchmark.TaskChoice(
        names=("mbpp",), include_path=None, num_fewshot=None, limit=None, data=tmp_path / "data"
    )
    model = ModelChoice(
        model=tmp_path, scorer="coder", device="cpu", dtype="auto", batch_size=2, max_length=None
    )
    found = benchmark.run(choice, model, tmp_path / "out", overwrite=False).results["results"]
    assert found["mbpp"]["pass_at_1,none"] == 0.5
    assert not coder.exists()


OWN_RUNNER = """task: own_runner
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
  cache_dir: {folder}/cache
unsafe_code: true
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{code}}}}"
metric_list:
  - metric: !function runner.passes
    aggregation: mean
    higher_is_better: true
"""


def test_a_task_that_runs_code_by_itself_is_refused(coder, tmp_path):
    _mbpp(tmp_path / "own", "mbpp")
    (tmp_path / "own" / "runner.py").write_text("def passes(references, predictions): exec('1')")
    (tmp_path / "own" / "runner.yaml").write_text(OWN_RUNNER.format(folder=tmp_path / "own"))
    with pytest.raises(EvalError, match=r"own_runner: runs what the model writes, .* --unsafe"):
        _run_own(tmp_path, "own_runner")


def test_pass_at_k_is_the_estimate_of_its_paper():
    """By hand, equation 1 of Chen et al. 2021: n=4, c=2: 1 - C(2,2)/C(4,2) = 5/6 for k=2."""
    metric = CodeEval(lambda program: "good" in program)
    tried = [["good 1", "bad", "good 2", "bad"]]
    found, verdicts = metric.compute(predictions=tried, references=["check()"], k=[1, 2, 8])
    assert found == {"pass@1": pytest.approx(0.5), "pass@2": pytest.approx(5 / 6)}
    assert [one["passed"] for _, one in verdicts[0]] == [True, False, True, False]


def test_the_mean_over_problems_and_the_program_are_those_of_the_metric():
    """By hand: problems with 1 of 1 and 0 of 1; a program is its text, a line end and its test."""
    seen = []
    metric = CodeEval(lambda program: bool(seen.append(program)) or "one" in program)
    found, _ = metric.compute(predictions=[["one"], ["two"]], references=["a", "b"], k=[1])
    assert found == {"pass@1": 0.5}
    assert seen == ["one\na", "two\nb"]


def test_a_time_limit_that_the_sandbox_does_not_give_is_refused():
    with pytest.raises(EvalError, match="timeout 60; the sandbox gives every program 3 s"):
        CodeEval(bool).compute(predictions=[["a"]], references=["b"], timeout=60)


def test_the_package_is_as_it_was_afterwards(monkeypatch):
    own = ModuleType("evaluate")
    own.load = lambda path: f"own {path}"
    own.version = "0.4"
    monkeypatch.setitem(sys.modules, "evaluate", own)
    with code_eval_through(bool):
        import evaluate

        assert isinstance(evaluate.load("code_eval"), CodeEval)
        assert evaluate.load("rouge") == "own rouge"
        assert evaluate.version == "0.4"
    assert sys.modules["evaluate"] is own
