import pytest

from llm_eval.comparison import compare
from llm_eval.errors import EvalError


def _results(**tasks):
    higher = {"t": {"acc": True, "token_perplexity": False}}
    return {"results": tasks, "higher_is_better": higher}


def test_difference_ratio_and_verdict_follow_the_metric():
    before = _results(t={"alias": "t", "acc,none": 0.25, "token_perplexity,none": 80.0})
    after = _results(t={"alias": "t", "acc,none": 0.5, "token_perplexity,none": 100.0})
    acc, perplexity = compare(before, after)
    assert (acc.metric, acc.difference, acc.ratio, acc.verdict) == ("acc", 0.25, 2.0, "better")
    assert (perplexity.difference, perplexity.ratio) == (20.0, 1.25)
    assert perplexity.verdict == "worse"


def test_standard_errors_and_counts_are_not_metrics():
    task = {"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 4}
    assert [row.metric for row in compare(_results(t=task), _results(t=task))] == ["acc"]


def test_a_filter_that_matters_is_shown():
    task = {"exact_match,strict-match": 0.5}
    (row,) = compare(_results(t=task), _results(t=task))
    assert (row.metric, row.verdict) == ("exact_match,strict-match", "same")


def test_an_overflow_is_changed_not_better():
    rows = compare(_results(t={"acc,none": None}), _results(t={"acc,none": 1.0}))
    assert (rows[0].verdict, rows[0].difference, rows[0].ratio) == ("changed", None, None)


def test_no_common_task_lists_both_sides():
    with pytest.raises(EvalError, match="first has x, the second y"):
        compare(_results(x={}), _results(y={}))


def _run(values, task="t", metric="acc", stderr=None):
    mean = sum(values) / len(values)
    metrics = {f"{metric},none": mean, f"{metric}_stderr,none": stderr}
    samples = [
        {"task": task, "doc_id": n, "doc_hash": str(n), "filter": "none", "metrics": [metric]}
        | {metric: value}
        for n, value in enumerate(values)
    ]
    return {"results": {task: metrics}, "higher_is_better": {task: {metric: True}}}, samples


def test_the_same_documents_are_compared_pair_by_pair():
    """Against the standard library: the mean and standard error of the differences."""
    import statistics

    before, after = [0, 1, 0, 1, 1, 0, 0, 1], [1, 1, 0, 1, 1, 1, 0, 1]
    (first, old), (second, new) = _run(before), _run(after)
    (row,) = compare(first, second, samples_before=old, samples_after=new)
    differences = [b - a for a, b in zip(before, after, strict=True)]
    half = 1.959964 * statistics.stdev(differences) / len(differences) ** 0.5
    assert row.interval.is_paired
    assert row.interval.low == pytest.approx(0.25 - half, abs=1e-6)
    assert row.interval.high == pytest.approx(0.25 + half, abs=1e-6)
    assert not row.interval.excludes_zero


def test_other_documents_are_compared_by_their_standard_errors():
    (first, old), (second, new) = _run([0, 1, 0, 0], stderr=0.03), _run([1, 1, 1], stderr=0.04)
    (row,) = compare(first, second, samples_before=old, samples_after=new)
    assert not row.interval.is_paired
    assert row.interval.low == pytest.approx(0.75 - 1.959964 * 0.05, abs=1e-6)
    assert row.interval.excludes_zero


def test_without_samples_or_errors_there_is_no_interval():
    (first, _), (second, _) = _run([0, 1]), _run([1, 1])
    (row,) = compare(first, second)
    assert row.interval is None
