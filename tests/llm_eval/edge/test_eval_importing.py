"""Original distributions imported, then read by the harness' own task files with no network."""

import gzip
import json
import shutil
import socket
import zipfile

import pytest

import original_benchmarks as original
from llm_eval.benchmarks import BENCHMARKS, choose
from llm_eval.edge import tasks
from llm_eval.edge.importing import import_data
from llm_eval.edge.local_data import LocalData
from llm_eval.errors import EvalError
from llm_eval.harness.code import code_eval_through
from llm_eval.needlebench import TASKS as NEEDLES


def _import(name, source, data, **changes):
    settings = {"partial": False, "overwrite": False}
    return import_data(name, [source], data, **settings | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """All of them, in one data folder."""
    root = tmp_path_factory.mktemp("originals")
    sources = {
        "mmlu": original.mmlu(root / "data.tar"),
        "ceval": original.ceval(root / "ceval-exam.zip"),
        "cmmlu": original.cmmlu(root / "cmmlu_v1_0_1.zip"),
        "boolq": original.boolq(root / "boolq"),
        "bbh": original.bbh(root / "bbh"),
        "agieval": original.agieval(root / "v1"),
        "gsm8k": original.gsm8k(root / "gsm8k"),
        "hellaswag": original.hellaswag(root / "hellaswag"),
        "humaneval": original.humaneval(root / "HumanEval.jsonl.gz"),
        "mbpp": original.mbpp(root / "mbpp"),
    }
    for name, source in sources.items():
        _import(name, source, root / "data")
    return root / "data"


PROMPTS = {
    "mmlu": "Which, of abstract_algebra,\nis 0?\nA. one\nB. two, 2\nC. a \"third\"\nD. 4\nAnswer:",
    "ceval": "accountant 的第0题是？\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：",
    "cmmlu": "第0题？\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：",
    "boolq": "Parity -- The number 0 is even.\nQuestion: is 0 even?\nAnswer:",
    "bbh": "Q: boolean_expressions 0?\nA:",
    "agieval": "Q: How many? Answer Choices: (A)one (B)two (C)three (D)four\n"
    "A: Among A through D, the answer is",
    "gsm8k": "Question: Ann has 0 eels and gets 2. How many has she?\nAnswer:",
    "hellaswag": "Cooking: A woman stands in a kitchen. She",
}  # fmt: skip
FIRST = {
    "mmlu": "mmlu_abstract_algebra",
    "ceval": "ceval-valid_accountant",
    "cmmlu": "cmmlu_anatomy",
    "bbh": "bbh_fewshot_boolean_expressions",
    "agieval": "agieval_sat_math",
}
SIZES = {"mmlu": 57, "ceval": 52, "cmmlu": 67, "bbh": 27, "agieval": 21}


@pytest.mark.parametrize("name", PROMPTS)
def test_every_task_of_the_harness_reads_the_imported_rows_with_no_network(name, data, monkeypatch):
    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    _, variant = choose(name, "default", None)
    manager = tasks.manager(variant.tasks, tasks.index(None), None, data=LocalData.open(data))
    found = manager.load(manager.build(variant.tasks))["tasks"]
    assert len(found) == SIZES.get(name, 1)
    task = found[FIRST.get(name, variant.tasks[0])]
    assert task.doc_to_text(next(iter(task.eval_docs))) == PROMPTS[name]


@pytest.mark.parametrize(
    ("name", "kind", "language", "asked", "target"),
    [
        ("cmmlu", "alternative", None, "D. 丁\n答案：", "D"),
        ("cmmlu", "alternative", "en", "D. 丁\nAnswer:", "D"),
        ("cmmlu", "cot", None, "'The answer is X', X being a letter.\n", "D"),
        ("boolq", "alternative", None, "A. Yes\nB. No\nAnswer:", 1),
    ],
)
def test_a_variant_replaces_keys_of_every_task(name, kind, language, asked, target, data):
    full_name, variant = choose(name, kind, language)
    assert full_name == "/".join(filter(None, (name, kind, language))) + "@1"
    manager = tasks.manager(
        variant.tasks,
        tasks.index(None),
        None,
        data=LocalData.open(data),
        overrides=variant.overrides,
    )
    found = manager.load(manager.build(variant.tasks))["tasks"]
    for task in found.values():
        doc = next(iter(task.eval_docs))
        assert task.doc_to_text(doc).endswith(asked)
        assert task.doc_to_target(doc) == target


def test_every_variant_of_the_table_names_tasks_that_are_there():
    index = tasks.index(None)
    for benchmark in BENCHMARKS.values():
        known = set(NEEDLES) if benchmark.sizes else set(index)
        wordings = benchmark.languages.values()
        for named in (*benchmark.variants.values(), *wordings):
            assert set(named.tasks) <= known


def test_an_unknown_prompt_type_or_language_lists_the_choices():
    with pytest.raises(EvalError, match="did you mean chat"):
        choose("mmlu", "chatt", None)
    with pytest.raises(EvalError, match="bbh: no prompts in 'zh'"):
        choose("bbh", "default", "zh")
    with pytest.raises(EvalError, match="--language goes with --prompt-type chat, default"):
        choose("agieval", "alternative", "zh")


def test_mbpp_is_divided_by_number(data):
    """By the release's README: 11-510 are tests; the rest as the hub has it."""
    local = LocalData.open(data)
    splits = {
        name: [row["task_id"] for row in rows]
        for name, rows in local.rows("google-research-datasets/mbpp", "full").items()
    }
    assert splits == {
        "prompt": [1, 10], "test": [11, 510], "validation": [511, 600], "train": [601, 974]
    }  # fmt: skip
    checked = local.rows("google-research-datasets/mbpp", "sanitized")
    assert [row["prompt"] for row in checked["test"]] == [
        "Write a function that adds 11 to a number."
    ]


def test_the_harness_asks_mbpp_with_its_examples(data):
    """Written out from mbpp.yaml of lm-eval 0.4.13."""
    manager = tasks.manager(["mbpp"], tasks.index(None), None, data=LocalData.open(data))
    with code_eval_through(bool):
        (task,) = manager.build(["mbpp"])
    doc = next(iter(task.eval_docs))
    assert task.doc_to_text(doc) == (
        "You are an expert Python programmer, and here is your task: Write a function that adds 11 "
        "to a number. Your code should pass these tests:\n\nassert add(1) == 12\n"
        "assert add(2) == 13\nassert add(3) == 14\n[BEGIN]\n"
    )
    assert len(task.eval_docs) == 2


def test_a_changed_row_is_noticed(data, tmp_path):
    copy = shutil.copytree(data / "gsm8k", tmp_path / "data" / "gsm8k")
    rows = copy / "all" / "test.jsonl"
    rows.write_text(rows.read_text().replace("eels", "cats"))
    with pytest.raises(EvalError, match=r"test\.jsonl: SHA-256 .* import again"):
        LocalData.open(tmp_path / "data").rows("openai/gsm8k", "main")


def test_a_manifest_of_another_version_is_refused(data, tmp_path):
    copy = shutil.copytree(data / "gsm8k", tmp_path / "data" / "gsm8k")
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(EvalError, match="version 2, want 1"):
        LocalData.open(tmp_path / "data")


def test_a_manifest_names_its_source_and_its_digest(data):
    manifest = json.loads((data / "humaneval" / "manifest.json").read_text())
    (source,) = manifest["sources"]
    assert source["name"] == "HumanEval.jsonl.gz"
    assert len(source["sha256"]) == 64
    assert [entry["rows"] for entry in manifest["datasets"]] == [2]


def test_missing_subjects_are_listed_and_accepted_when_asked(tmp_path):
    source = original.mmlu(tmp_path / "data.tar", names=["anatomy"])
    with pytest.raises(EvalError, match=r"112 of 114 parts missing: abstract_algebra \(dev\), .*…"):
        _import("mmlu", source, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    assert _import("mmlu", source, tmp_path / "data", partial=True).num_datasets == 1
    with pytest.raises(EvalError, match="exists; --overwrite replaces it"):
        _import("mmlu", source, tmp_path / "data", partial=True)
    assert _import("mmlu", source, tmp_path / "data", partial=True, overwrite=True).num_rows == 8


@pytest.mark.parametrize("name", ["data.tar", "ceval-exam.zip", "HumanEval.jsonl.gz"])
def test_a_cut_off_archive_is_refused_and_nothing_stays(name, tmp_path):
    make = {"data.tar": "mmlu", "ceval-exam.zip": "ceval", "HumanEval.jsonl.gz": "humaneval"}[name]
    source = getattr(original, make)(tmp_path / name)
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    with pytest.raises(EvalError, match=rf"{name}: (cut off or damaged|not a zip file)"):
        _import(make, source, tmp_path / "data")
    assert not (tmp_path / "data" / make).exists()
    assert not list((tmp_path).glob("data/.*"))


def test_a_damaged_member_of_a_zip_is_refused(tmp_path):
    source = original.ceval(tmp_path / "ceval-exam.zip", names=["law"])
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        start = archive.getinfo("val/law_val.csv").header_offset
    content[start + 60] ^= 0xFF
    source.write_bytes(content)
    with pytest.raises(EvalError, match=r"cut off or damaged: .*law_val"):
        _import("ceval", source, tmp_path / "data", partial=True)


def test_a_file_of_something_else_says_what_is_wanted(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    with pytest.raises(EvalError, match=r"no file of mmlu in it; want data\.tar"):
        _import("mmlu", other, tmp_path / "data")
    with pytest.raises(EvalError, match="no such file or folder"):
        _import("mmlu", tmp_path / "nowhere.tar", tmp_path / "data")


def test_a_path_that_climbs_out_of_the_archive_writes_nothing_there(tmp_path):
    source = tmp_path / "evil.zip"
    row = {"question": "q", "answer": "a"}
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("../../evil/test.jsonl", json.dumps(row))
    _import("gsm8k", source, tmp_path / "deep" / "data")
    assert not list(tmp_path.rglob("evil"))
    assert (tmp_path / "deep" / "data" / "gsm8k" / "all" / "test.jsonl").is_file()


def test_examples_of_a_split_that_was_not_imported_are_an_error(tmp_path):
    source = tmp_path / "test.jsonl.gz"
    source.write_bytes(gzip.compress(json.dumps({"question": "q", "answer": "a"}).encode()))
    _import("gsm8k", source, tmp_path / "data")
    manager = tasks.manager(
        ["gsm8k"], tasks.index(None), None, data=LocalData.open(tmp_path / "data")
    )
    (task,) = manager.build(["gsm8k"])
    with pytest.raises(EvalError, match="wants 5 examples of the split 'train'"):
        task.check_examples()
