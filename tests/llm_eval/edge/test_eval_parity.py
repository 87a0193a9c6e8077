"""Our engines against lm-eval's own `hf`, on the harness' own tasks, at several batch sizes."""

import json
from functools import cache

import pytest

import original_benchmarks as original
from llm_eval.benchmarks import choose
from llm_eval.edge import benchmark, model_folder, tasks
from llm_eval.edge.importing import import_data
from llm_eval.edge.local_data import LocalData
from llm_eval.edge.perplexity import ModelChoice

SHORT = {"generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}}
# What is run, its keys changed to be quick, how many requests a document makes, batch sizes.
CASES = {
    "mmlu": ("mmlu_anatomy", {}, 4, (1, 4, 16)),
    "mmlu-alternative": ("mmlu_anatomy", {}, 1, (4,)),
    "hellaswag": ("hellaswag", {}, 4, (1, 4, 16)),
    "boolq": ("boolq", {}, 2, (1, 4, 16)),
    "gsm8k": ("gsm8k", SHORT, 1, (1, 4, 16)),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A qwen3 whose context holds five examples, with moderate logits."""
    from tiny_lm import make_model

    folder = tmp_path_factory.mktemp("parity") / "model"
    return make_model(folder, "qwen3", context=1024, spread=0.12)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("parity_data")
    for name, source in {
        "mmlu": original.mmlu(root / "data.tar", names=["anatomy"], rows=4),
        "hellaswag": original.hellaswag(root / "hellaswag"),
        "boolq": original.boolq(root / "boolq"),
        "gsm8k": original.gsm8k(root / "gsm8k"),
    }.items():
        import_data(name, [source], root / "data", partial=True, overwrite=False)
    return root / "data"


def _choice(case, data):
    task, changes, _, _ = CASES[case]
    name, _, kind = case.partition("-")
    full_name, variant = choose(name, kind or "default", None)
    return benchmark.TaskChoice(
        names=(task,),
        include_path=None,
        num_fewshot=variant.num_fewshot,
        limit=None,
        data=data,
        prompt=full_name,
        overrides={**variant.overrides, **changes},
    )


def _ours(case, model, data, output, *, scorer="hf", batch_size=8):
    choice = ModelChoice(
        model=model,
        scorer=scorer,
        device="cpu",
        dtype="float32",
        batch_size=batch_size,
        max_length=None,
    )
    outcome = benchmark.run(_choice(case, data), choice, output, overwrite=False)
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    return outcome.results, samples


@cache
def _theirs(case, model, data, batch_size):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models import huggingface

    loaded, tokenizer = model_folder.load(model, device="cpu", dtype="float32")
    choice = _choice(case, data)
    manager = tasks.manager(
        choice.names, tasks.index(None), None, data=LocalData.open(data), overrides=choice.overrides
    )
    return simple_evaluate(
        model=huggingface.HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=batch_size),
        tasks=manager.build(choice.names),
        num_fewshot=choice.num_fewshot,
        task_manager=manager,
    )


def _assert_same(case, ours, theirs):
    """Metrics are equal, requests too, log-probabilities to 1e-5, texts to the letter."""
    task, _, per_document, _ = CASES[case]
    results, samples = ours
    assert samples
    metrics = {k: v for k, v in theirs["results"][task].items() if "," in k}
    assert {k: results["results"][task][k] for k in metrics} == metrics
    rows = theirs["samples"][task]
    assert len(rows) == len(samples)
    for mine, row in zip(samples, rows, strict=True):
        assert mine["arguments"] == [list(asked) for asked in row["arguments"]]
        assert len(mine["resps"]) == per_document
        for answer, their in zip(mine["resps"], row["resps"], strict=True):
            if isinstance(their[0], str):
                assert answer == their
            else:
                assert answer[0][0] == pytest.approx(their[0][0], abs=1e-5)
                assert bool(answer[0][1]) == their[0][1]


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_lm_evals_hf_at_any_batch_size(case, model, data, tmp_path):
    ours = _ours(case, model, data, tmp_path / "out")
    for batch_size in CASES[case][-1]:
        _assert_same(case, ours, _theirs(case, model, data, batch_size))


@pytest.mark.parametrize(("case", "batch_size"), [("mmlu", 16), ("hellaswag", 3), ("gsm8k", 4)])
def test_scores_of_llm_infers_scorer_are_those_of_lm_evals_hf(
    case, batch_size, model, data, tmp_path
):
    ours = _ours(case, model, data, tmp_path / "o", scorer="llm-infer", batch_size=batch_size)
    _assert_same(case, ours, _theirs(case, model, data, 4))


def test_questions_of_a_subject_share_their_examples(model, data):
    """What makes it fast: the examples are read once, the four choices in one row."""
    from llm_eval.harness.hf_engine import HFEngine

    engine = HFEngine(*model_folder.outline(model))
    examples = "".join(f"Question number {n}: what?\nAnswer: {n}\n\n" for n in range(9))
    requests = [
        (f"{examples}Question: {text} is it?\nAnswer:", f" {letter}")
        for text in ("which", "what else", "how many more of them")
        for letter in "ABCD"
    ]
    (work,) = engine.plan("loglikelihood", requests)
    assert sorted(work.indices) == list(range(12))
    assert len(work.task.rows) == 3
    assert len(work.task.shared) > 5 * max(len(row) for row in work.task.rows)
