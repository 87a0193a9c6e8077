import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from llm_eval.edge import benchmark, tasks
from llm_eval.edge.perplexity import ModelChoice
from llm_eval.errors import EvalError
from tiny_lm import edit_json

TASK = """task: toy_animals
tag: toy_all
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/data.jsonl}}
  cache_dir: {folder}/cache
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} Answer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata: {{version: 1.0}}
"""
GROUP = "group: toy_group\ntask:\n  - toy_animals\n"


@pytest.fixture
def own_tasks(tmp_path):
    """A multiple-choice task of our own over a local file, in a folder for --include-path."""
    folder = tmp_path / "own"
    folder.mkdir()
    words = ["cat", "a dog", "some 鳥", "fox", "eel"]
    draw = random.Random(0)
    rows = [
        {
            "question": f"Which is number {number}?",
            "choices": draw.sample(words, 4),
            "answer": draw.randrange(4),
        }
        for number in range(12)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "toy.yaml").write_text(TASK.format(folder=folder))
    (folder / "group.yaml").write_text(GROUP)
    return folder


def _tasks(*names, include, **changes):
    settings = {"num_fewshot": None, "limit": None}
    return benchmark.TaskChoice(names=names, include_path=include, **settings | changes)


def _model(folder):
    return ModelChoice(
        model=folder, scorer="hf", device="cpu", dtype="float32", batch_size=4, max_length=None
    )


def _samples(output):
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


def test_accuracy_is_lm_evals_own_and_log_probabilities_those_of_transformers(
    roomy_model, own_tasks, tmp_path, monkeypatch, capfd
):
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = roomy_model
    # lm-eval asks git of the working folder, and git complains where there is no repository.
    monkeypatch.chdir(tmp_path)
    outcome = benchmark.run(
        _tasks("toy_animals", include=own_tasks), _model(folder), tmp_path / "out", overwrite=False
    )
    assert "git" not in capfd.readouterr().err

    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        device="cpu",
        tasks=["toy_animals"],
        task_manager=TaskManager(include_defaults=False, include_path=str(own_tasks)),
    )
    for name in ("lm_eval_version", "transformers_version"):
        assert outcome.results[name] == theirs[name]
    found = outcome.results["results"]["toy_animals"]
    assert found["acc,none"] == theirs["results"]["toy_animals"]["acc,none"]
    assert found["acc_stderr,none"] == theirs["results"]["toy_animals"]["acc_stderr,none"]
    assert 0 < found["acc,none"] < 1

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for sample in _samples(tmp_path / "out"):
        for (context, answer), ((logprob, _),) in zip(
            sample["arguments"], sample["resps"], strict=True
        ):
            whole, start = tokenizer.encode(context + answer), len(tokenizer.encode(context))
            with torch.no_grad():
                logprobs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            expected = sum(logprobs[i - 1, whole[i]].item() for i in range(start, len(whole)))
            assert logprob == pytest.approx(expected, abs=1e-5)


def test_a_question_cut_to_the_context_is_warned_about(models, own_tasks, tmp_path, caplog):
    choice = _tasks("toy_animals", include=own_tasks)
    benchmark.run(choice, _model(models["qwen3"]), tmp_path / "out", overwrite=False)
    assert "exceeds model's maximum length (32)" in caplog.text
    assert "already-initialized" not in caplog.text


def test_limit_and_fewshot_reach_the_harness(roomy_model, own_tasks, tmp_path):
    choice = _tasks("toy_animals", include=own_tasks, limit=3, num_fewshot=1)
    outcome = benchmark.run(choice, _model(roomy_model), tmp_path / "out", overwrite=False)
    samples = _samples(tmp_path / "out")
    assert [sample["doc_id"] for sample in samples] == [0, 1, 2]
    assert samples[0]["arguments"][0][0].count("Answer:") == 2
    assert outcome.results["n-shot"] == {"toy_animals": 1}
    assert {sample["task"] for sample in samples} == {"toy_animals"}


@pytest.mark.parametrize("name", ["toy_group", "toy_all"])
def test_a_group_and_a_tag_run_their_members(roomy_model, own_tasks, tmp_path, name):
    choice = _tasks(name, include=own_tasks, limit=2)
    outcome = benchmark.run(choice, _model(roomy_model), tmp_path / "out", overwrite=False)
    assert outcome.results["n-samples"]["toy_animals"]["effective"] == 2


def test_an_unknown_task_names_the_nearest_and_writes_nothing(roomy_model, own_tasks, tmp_path):
    with pytest.raises(EvalError, match="no task named 'toy_animal'; nearest: toy_animals"):
        benchmark.run(
            _tasks("toy_animal", include=own_tasks),
            _model(roomy_model),
            tmp_path / "out",
            overwrite=False,
        )
    assert not (tmp_path / "out").exists()


def test_a_missing_data_file_fails_and_leaves_no_results(roomy_model, own_tasks, tmp_path):
    (own_tasks / "data.jsonl").unlink()
    with pytest.raises(EvalError, match=r"task toy_animals \(.*toy\.yaml\): .*data\.jsonl"):
        benchmark.run(
            _tasks("toy_animals", include=own_tasks),
            _model(roomy_model),
            tmp_path / "out",
            overwrite=False,
        )
    assert not (tmp_path / "out" / "results.json").exists()
    assert json.loads((tmp_path / "out" / "partial.json").read_text())["partial"] is True


@pytest.mark.parametrize("group", ["mmlu", "bbh", "agieval", "ceval-valid"])
def test_the_quick_index_leads_the_harness_to_every_member_of_a_shipped_group(group):
    """The members are those the harness itself reads from the group's own files."""
    from lm_eval.tasks._yaml_loader import load_yaml

    index = tasks.index(None)
    manager = tasks.manager([group], index, None)
    entry = manager.task_index[group]
    waiting, tasks_found = [entry.cfg], 0
    while waiting:
        for member in waiting.pop()["task"]:
            name = member if isinstance(member, str) else member.get("task") or member["group"]
            found = manager.task_index[name]
            if found.kind.name == "GROUP":
                waiting.append(load_yaml(found.yaml_path, resolve_func=False))
            elif found.kind.name == "TAG":
                assert found.tags
                tasks_found += len(found.tags)
            else:
                tasks_found += 1
    assert tasks_found >= 20
    assert len(manager.all_tasks) < len(index) / 4


def test_the_quick_index_knows_what_the_harness_knows_of_a_folder():
    from lm_eval.tasks import TaskManager

    root = Path(tasks.__file__)
    index = tasks.index(None)
    folders = {file.parent for name in ("hellaswag", "boolq") for file in index[name].files}
    assert root not in folders
    for folder in folders:
        known = TaskManager(include_defaults=False, include_path=str(folder)).task_index
        for name, entry in known.items():
            assert index[name].kind == entry.kind.name.lower().removeprefix("py_")
            assert entry.yaml_path is None or entry.yaml_path in index[name].files


def test_an_include_path_that_is_missing_or_empty(tmp_path):
    with pytest.raises(EvalError, match="no such folder"):
        tasks.index(tmp_path / "nowhere")
    with pytest.raises(EvalError, match=r"no \*.yaml file there names a task"):
        tasks.index(tmp_path)


CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_conversation_is_asked_alike_through_hf_and_through_a_scorer(
    roomy_model, own_tasks, tmp_path
):
    folder = shutil.copytree(roomy_model, tmp_path / "chatty")
    edit_json(folder / "tokenizer_config.json", chat_template=CHAT)
    found = []
    for scorer in ("hf", "llm-infer"):
        model, output = replace(_model(folder), scorer=scorer), tmp_path / scorer
        choice = _tasks("toy_animals", include=own_tasks, num_fewshot=1, is_chat=True)
        benchmark.run(choice, model, output, overwrite=False)
        found.append(_samples(output))
    for ours, theirs in zip(*found, strict=True):
        assert ours["arguments"] == theirs["arguments"]
        assert ours["acc"] == theirs["acc"]
        for one, other in zip(ours["filtered_resps"], theirs["filtered_resps"], strict=True):
            assert float(one[0]) == pytest.approx(float(other[0]), abs=1e-5)
    context = found[0][0]["arguments"][0][0]
    # By hand: the example a message and its answer, then the question.
    assert re.fullmatch(
        r"<user>Which is number \d+\? Answer:</><assistant>[^<]+</>"
        r"<user>Which is number 0\? Answer:</><assistant>",
        context,
    )


def test_a_conversation_with_a_model_that_has_no_template_is_refused(
    roomy_model, own_tasks, tmp_path
):
    choice = _tasks("toy_animals", include=own_tasks, is_chat=True)
    with pytest.raises(EvalError, match="the tokenizer has no chat template"):
        benchmark.run(choice, _model(roomy_model), tmp_path / "out", overwrite=False)


def _broken(own, text=TASK, rows=None, *, name="toy_broken"):
    """A task file of a user's own, beside the sound ones."""
    folder = own / "broken"
    folder.mkdir()
    (folder / "data.jsonl").write_text((own / "data.jsonl").read_text() if rows is None else rows)
    text = text.replace("toy_animals", name).replace("tag: toy_all\n", "")
    (folder / "broken.yaml").write_text(text.format(folder=folder))


@pytest.mark.parametrize(
    ("changed", "rows", "said"),
    [
        ({}, '{"question": "x"\n{{{', "JSON parse error"),
        ({}, "", "its data file is empty"),
        ({}, '{"asked": "x", "choices": ["a"], "answer": 0}\n', "'question' is undefined"),
        ({"question}}}}": "question"}, None, "TemplateSyntaxError"),
        ({"multiple_choice": "chocie"}, None, "invalid output_type 'chocie'"),
        (
            {'doc_to_text: "': "doc_to_text: !function gone.f #"},
            None,
            "Cannot import module 'gone'",
        ),
    ],
)
def test_a_task_file_that_cannot_be_built_is_named_with_the_reason(
    changed, rows, said, own_tasks, roomy_model, tmp_path
):
    text = TASK
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new)
    _broken(own_tasks, text, rows)
    choice = _tasks("toy_broken", include=own_tasks)
    with pytest.raises(EvalError, match="broken") as caught:
        benchmark.run(choice, _model(roomy_model), tmp_path / "out", overwrite=False)
    assert "broken.yaml): " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ("[toy_animals, toy_animal]", r"g\.yaml: no task named 'toy_animal'; nearest: toy_animals"),
        ("[]", "group toy_odd: holds no task"),
        ("[toy_odd]", "group toy_odd: holds itself"),
    ],
)
def test_a_group_that_holds_nothing_unknown_names_or_itself_is_refused(
    group, said, own_tasks, roomy_model, tmp_path
):
    (own_tasks / "g.yaml").write_text(f"group: toy_odd\ntask: {group}\n")
    choice = _tasks("toy_odd", include=own_tasks)
    with pytest.raises(EvalError, match=said):
        benchmark.run(choice, _model(roomy_model), tmp_path / "out", overwrite=False)


def test_more_examples_than_there_are_is_an_error_that_says_so(own_tasks, roomy_model, tmp_path):
    choice = _tasks("toy_animals", include=own_tasks, num_fewshot=99)
    with pytest.raises(EvalError, match="toy_animals: its prompts cannot be made with 99 examples"):
        benchmark.run(choice, _model(roomy_model), tmp_path / "out", overwrite=False)
