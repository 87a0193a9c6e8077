from pathlib import Path

import pytest

from llm_eval.errors import EvalError
from llm_eval.taskindex import build, names_in, require

TASK = b"""tag:
  - exams
  - school  # both
task: "algebra"
dataset_path: json
"""
GROUP = b"""group: maths
task:
  - algebra
  - group: inner
    task: [geometry]
aggregate_metric_list:
  - metric: acc
"""


def test_names_of_a_task_file():
    assert names_in(TASK) == [("tag", "exams"), ("tag", "school"), ("task", "algebra")]


def test_members_of_a_group_are_not_declared_by_it():
    assert names_in(GROUP) == [("group", "maths")]
    assert names_in(b"group: maths\ntask: [algebra, geometry]\n") == [("group", "maths")]


def test_inline_tags():
    assert names_in(b"tag: [a, 'b']\ntask: t") == [("tag", "a"), ("tag", "b"), ("task", "t")]


def test_a_tag_stands_in_all_its_files_a_task_in_the_first():
    index = build([(Path("1"), b"tag: x\ntask: a"), (Path("2"), b"tag: x\ntask: a")])
    assert index["x"].files == (Path("1"), Path("2"))
    assert index["a"].files == (Path("1"),)


def test_an_unknown_name_gets_the_nearest():
    index = build([(Path("1"), b"task: hellaswag"), (Path("2"), b"task: boolq")])
    with pytest.raises(EvalError, match="no task named 'helaswag'; nearest: hellaswag"):
        require("helaswag", index)


def test_keys_and_names_may_be_quoted_as_in_mmlus_files():
    content = b'"tag": "mmlu_stem_tasks"\n"task": "mmlu_anatomy"\n"task_alias": "anatomy"\n'
    assert names_in(content) == [("tag", "mmlu_stem_tasks"), ("task", "mmlu_anatomy")]
