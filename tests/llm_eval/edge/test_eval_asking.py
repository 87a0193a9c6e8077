"""Kinds of tasks and ways to ask them, through `llm-eval run`, against lm-eval's own evaluator."""

import json
import math

import pytest
from click.testing import CliRunner

from llm_eval.cli import main
from llm_eval.edge import model_folder

DATA = """dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl, train: {folder}/shots.jsonl}}}}
test_split: test
fewshot_split: train
"""
ROWS = [
    {"q": "the cat sat on", "a": "the mat", "opts": ["the mat", "a dog", "nothing"], "gold": 0},
    {"q": "one two three", "a": "four", "opts": ["five", "four"], "gold": 1},
    {"q": "Größe und Maß", "a": "ja", "opts": ["nein", "ja"], "gold": 1},
    {"q": "once upon a time", "a": "a king", "opts": ["a king", "a long winter night"], "gold": 1},
    {"q": "x", "a": "y", "opts": ["y", "z"], "gold": 0},
]
SHOTS = [
    {"q": f"{thing} is", "a": color, "opts": [color, "pink"], "gold": 0}
    for thing, color in (("sky", "blue"), ("grass", "green"), ("snow", "white"))
]
FUNCTIONS = """
def choices(doc):
    return [text.upper() if number % 2 else text for number, text in enumerate(doc["opts"])]

def shots():
    return [{"q": "up is", "a": "down"}, {"q": "in is", "a": "out"}]
"""
TASKS = {
    "own_rolling": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}} {{a}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "own_choice": """output_type: multiple_choice
doc_to_text: "Q: {{q}}\\nA:"
doc_to_choice: !function own.choices
doc_to_target: gold
num_fewshot: 2
fewshot_config: {sampler: first_n}
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_mutual_info}]
""",
    "own_drawn": """output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{opts}}"
doc_to_target: gold
num_fewshot: 2
fewshot_delimiter: " ## "
target_delimiter: " => "
description: "Finish:\\n"
metric_list: [{metric: acc}]
""",
    "own_until": """output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
num_fewshot: 2
fewshot_config: {sampler: first_n, samples: !function own.shots}
generation_kwargs: {until: ["  ", "ß", "\\n\\n", "</s>"], max_gen_toks: 16, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "own_vote": """output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
repeats: 3
generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false}
filter_list:
  - name: maj
    filter:
      - {function: take_first_k, k: 3}
      - {function: regex, regex_pattern: "(\\\\w+)", group_select: -1}
      - {function: majority_vote}
      - {function: take_first}
  - name: low
    filter: [{function: lowercase}, {function: remove_whitespace}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}
GROUP = """group: own_group
task: [own_choice, own_drawn]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MULTI = {"apply_chat_template": True, "fewshot_as_multiturn": True}
GENERATION = {"max_gen_toks": 5, "until": ["o", "\n"]}
CHOSEN = {"own_choice": [1, 4], "own_until": [0, 3]}
# What is run, the options of ours, lm-eval's own arguments, its batch sizes.
CASES = {
    "as they are": (["own_rolling", "own_until", "own_vote", "own_group"], [], {}, (1, 4, 16)),
    "a share": (["own_choice", "own_until"], ["--limit", "0.5"], {"limit": 0.5}, (4,)),
    "a system prompt": (
        ["own_choice", "own_until"], ["--system-instruction", "Be brief."],
        {"system_instruction": "Be brief."}, (4,),
    ),
    "a conversation": (
        ["own_choice", "own_until"],
        ["--apply-chat-template", "--system-instruction", "Be brief."],
        {**MULTI, "system_instruction": "Be brief."}, (4,),
    ),
    "one message": (
        ["own_choice", "own_until"], ["--apply-chat-template", "--no-fewshot-as-multiturn"],
        {**MULTI, "fewshot_as_multiturn": False}, (4,),
    ),
    "other generation": (
        ["own_until", "own_vote"],
        ["--gen-kwargs", "max_gen_toks=5", "--gen-kwargs", 'until=["o", "\\n"]'],
        {"gen_kwargs": GENERATION}, (4,),
    ),
    "chosen documents": (
        list(CHOSEN), ["--samples", json.dumps(CHOSEN)], {"samples": CHOSEN}, (4,),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for name, rows in (("rows", ROWS), ("shots", SHOTS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.py").write_text(FUNCTIONS)
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{DATA.format(folder=folder)}{text}")
    (folder / "own_group.yaml").write_text(GROUP)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_lm import make_model

    folder = make_model(tmp_path_factory.mktemp("asked") / "m", "qwen3", context=512, spread=0.12)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT}))
    return folder


def _run(tasks, own, model, output, *options):
    given = ["--include-path", own, "--model", model, "--output", output, "--dtype", "float32"]
    return CliRunner().invoke(main, ["run", *tasks, *map(str, given), *options])


def _theirs(tasks, own, model, batch_size, options):
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded, tokenizer = model_folder.load(model, device="cpu", dtype="float32")
    return simple_evaluate(
        model=HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=batch_size),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(own), include_defaults=False),
        bootstrap_iters=100,
        **options,
    )


def _assert_same(ours, theirs, where):
    """To the letter; numbers to 1e-5, or that part of them."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), where
        for key in theirs:
            _assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            _assert_same(mine, other, f"{where}[{number}]")
    elif isinstance(theirs, float) and not math.isnan(theirs):
        assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5), where
    else:
        assert ours == theirs or str(ours) == str(theirs), where


@pytest.mark.parametrize("case", CASES)
def test_what_is_asked_and_scored_is_lm_evals(case, own, model, tmp_path, monkeypatch):
    """Every metric, prompt, answer, filtered answer; numbers of examples and of documents."""
    # A minute of drawing samples, for standard errors that are not compared here.
    monkeypatch.setattr("lm_eval.api.metrics.bootstrap_stderr", lambda *_, **__: 0.0)
    tasks, options, theirs, batch_sizes = CASES[case]
    found = _run(tasks, own, model, tmp_path / "out", *options)
    assert found.exit_code == 0, found.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = [json.loads(s) for s in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    samples = {}
    for row in rows:
        samples.setdefault(row.pop("task"), []).append(row)
    for batch_size in batch_sizes:
        expected = _theirs(tasks, own, model, batch_size, theirs)
        for part in ("n-shot", "n-samples", "versions", "higher_is_better"):
            _assert_same(results[part], expected[part], part)
        for part in ("results", "groups"):
            without = {
                name: {k: v for k, v in values.items() if "_stderr" not in k}
                for name, values in expected.get(part, {}).items()
            }
            for name, values in without.items():
                mine = {k: v for k, v in results[part][name].items() if "_stderr" not in k}
                _assert_same(mine, values, f"{part}.{name}")
        _assert_same(samples, json.loads(json.dumps(expected["samples"], default=str)), "samples")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--limit", "1.5"], "want a number from 1, or a share between 0 and 1"),
        (["--limit", "0"], "want a number from 1, or a share between 0 and 1"),
        (["--gen-kwargs", "temperature"], "want KEY=VALUE"),
        (["--samples", "{}"], 'want {"task": [0, 7], …}'),
        (["--samples", '{"own_choice": [1, 1]}'], "own_choice: [1, 1]; want different numbers"),
        (["--samples", '{"own_choice": [true]}'], "want different numbers"),
        (["--samples", "nowhere.json"], "No such file"),
        (["--samples", '{"own_choice": [5]}'], "own_choice has no document 5; it has 5"),
        (["--samples", '{"own_drawn": [0]}'], "names no document of own_choice, which is run"),
        (["--samples", '{"own_choice": [0], "x": [0]}'], "x is not run; these are: own_choice"),
        (["--samples", '{"own_choice": [0]}', "--limit", "1"], "choose one of them"),
    ],
)
def test_a_wrong_option_says_what_is_wanted(options, said, own, model, tmp_path):
    found = _run(["own_choice"], own, model, tmp_path / "out", *options)
    assert found.exit_code in (1, 2)
    assert said in " ".join(found.output.split())


def test_a_task_that_is_named_twice_is_an_error(own, model, tmp_path):
    found = _run(["own_choice", "own_group"], own, model, tmp_path / "out")
    assert found.exit_code == 1
    assert "Error: Duplicate task 'own_choice'" in found.output


def test_a_run_asked_otherwise_is_another_run(own, model, tmp_path):
    assert _run(["own_until"], own, model, tmp_path / "out").exit_code == 0
    found = _run(["own_until"], own, model, tmp_path / "out", "--gen-kwargs", "max_gen_toks=5")
    assert found.exit_code == 1
    assert "generation" in found.output
