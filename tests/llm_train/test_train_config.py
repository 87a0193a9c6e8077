"""What a config refuses, and how it says so."""

from pathlib import Path

import pytest

from llm_train.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Precision,
    RunConfig,
    SaveConfig,
    TrainConfig,
)
from llm_train.config_parse import parse
from llm_train.edge.config_file import load
from llm_train.overrides import ConfigError, read_document

SMALLEST = """
model: {arch: arch.json}
data: {train: [data/a]}
train: {max_steps: 10, seq_length: 32, global_batch_size: 4}
optimizer: {lr: 1e-3}
save: {path: run}
"""


def config(*overrides: str, text: str = SMALLEST) -> RunConfig:
    return parse(read_document(text, "run.yaml"), overrides, "run.yaml")


def refusal(*overrides: str, text: str = SMALLEST) -> str:
    with pytest.raises(ConfigError) as caught:
        config(*overrides, text=text)
    return str(caught.value)


def test_the_smallest_config_has_the_documented_defaults():
    found = config()
    assert found.model.arch == Path("arch.json")
    assert (found.train.micro_batch_size, found.train.seed) == (1, 1234)
    assert (found.optimizer.beta1, found.optimizer.beta2, found.optimizer.eps) == (0.9, 0.95, 1e-8)
    assert (found.optimizer.weight_decay, found.optimizer.clip_grad) == (0.1, 1.0)
    assert (found.parallel.tp, found.parallel.pp, found.parallel.vpp) == (1, 1, None)
    assert (found.recompute.kind, found.device, found.save.resume) == ("none", "auto", "auto")
    assert found.train.precision is Precision.FP32


def test_a_config_made_in_python_equals_the_one_read_from_yaml():
    made = RunConfig(
        model=ModelConfig(arch=Path("arch.json")),
        data=DataConfig(train=(Path("data/a"),)),
        train=TrainConfig(max_steps=10, seq_length=32, global_batch_size=4),
        optimizer=OptimizerConfig(lr=1e-3),
        save=SaveConfig(path=Path("run")),
    )
    assert made == config()


def test_decay_steps_are_max_steps_unless_given():
    assert config().optimizer.decay_steps == 10
    assert config("train.max_steps=77").optimizer.decay_steps == 77
    assert config("optimizer.decay_steps=5").optimizer.decay_steps == 5


def test_an_unknown_key_is_named_with_the_nearest_and_all_known_ones():
    text = SMALLEST.replace("max_steps", "max_stepz")
    assert (
        "run.yaml: train.max_stepz: unknown key; did you mean max_steps? (keys: "
        f"{', '.join(TrainConfig.model_fields)})"
    ) in refusal(text=text).splitlines()


def test_an_unknown_section_is_named_with_the_nearest_one():
    assert "run.yaml: optimiser: unknown key; did you mean optimizer? (keys: model, data," in (
        refusal(text=SMALLEST.replace("optimizer:", "optimiser:"))
    )


def test_an_unknown_key_near_nothing_gets_no_suggestion():
    assert refusal("train.zzz=1").startswith(
        "override 'train.zzz=1': train.zzz: unknown key; (keys: max_steps,"
    )


@pytest.mark.parametrize(
    ("override", "found", "wanted"),
    [
        ("train.max_steps=ten", '"ten"', "a whole number"),
        ("train.max_steps='10'", '"10"', "a whole number"),
        ("train.max_steps=1.5", "1.5", "a whole number"),
        ("train.max_steps=true", "true", "a whole number"),
        ("train.max_steps=0", "0", "at least 1"),
        ("train.seed=-1", "-1", "at least 0"),
        ("train.precision=fp8", '"fp8"', "one of 'fp32', 'bf16' or 'fp16'"),
        ("optimizer.lr=fast", '"fast"', "a number"),
        ("optimizer.lr=0", "0", "a number above 0.0"),
        ("optimizer.lr=.inf", "Infinity", "a finite number"),
        ("optimizer.beta1=1", "1", "a number below 1.0"),
        ("optimizer.distributed=1", "1", "true or false"),
        (
            "optimizer.decay=step",
            '"step"',
            "one of 'cosine', 'linear', 'constant', 'inverse-square-root' or 'wsd'",
        ),
        ("parallel.vpp=1", "1", "at least 2"),
        ("data.train=data/a", '"data/a"', "a list"),
        ("data.valid_fraction=1", "1", "a number below 1.0"),
        ("save.path=3", "3", "text"),
        ("save.keep=0", "0", "at least 1"),
        ("recompute.kind=some", '"some"', "one of 'none', 'full' or 'selective'"),
        ("device=gpu", '"gpu"', "one of 'auto', 'cpu', 'cuda' or 'npu'"),
        ("log=3", "3", "a mapping of keys"),
    ],
)
def test_a_wrong_value_is_told_with_what_was_wanted(override, found, wanted):
    key = override.partition("=")[0]
    assert refusal(override) == f"override {override!r}: {key}: found {found}, wanted {wanted}"


def test_a_wrong_entry_of_a_list_is_told_with_its_place():
    message = refusal("data.weights=[1, heavy]")
    assert 'data.weights.1: found "heavy", wanted a number' in message


def test_a_missing_key_is_told_with_its_meaning():
    text = SMALLEST.replace("seq_length: 32, ", "")
    assert refusal(text=text) == "run.yaml: train.seq_length: missing; wanted tokens per sequence"


def test_a_missing_section_is_told_with_its_required_keys():
    text = SMALLEST.replace("save: {path: run}", "")
    assert refusal(text=text) == "run.yaml: save: missing; wanted a section with path"


def test_every_wrong_key_is_told_at_once():
    lines = refusal("train.seed=-1", "device=gpu", "parallel.tp=0").splitlines()
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.load=hf", "model: found both of load and arch, wanted exactly one of them"),
        ("model.arch=null", "model: found neither of load and arch, wanted exactly one of them"),
        ("data.weights=[1, 2]", "data: weights has 2 entries, train has 1: wanted one weight"),
        ("data.train=[]", "data: found neither of train and raw, wanted exactly one of them"),
        ("optimizer.min_lr=1", "optimizer: min_lr=1.0 is above lr=0.001"),
    ],
)
def test_fields_of_one_section_that_contradict_each_other_are_refused(override, words):
    assert words in refusal(override)


def test_weights_whose_sum_is_no_number_are_refused():
    message = refusal("data.train=[a, b]", "data.weights=[1.0e+308, 1.0e+308]")
    assert "data: weights sum up to inf, wanted a finite sum" in message


def test_two_sources_of_validation_data_are_refused():
    message = refusal("data.valid=[v]", "data.valid_fraction=0.1")
    assert "wanted at most one" in message


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        config().train.max_steps = 3


def test_every_field_says_what_it_is():
    schema = RunConfig.model_json_schema()
    sections = schema["$defs"].items()
    silent = [
        f"{name}.{field}"
        for name, section in sections
        for field, entry in section.get("properties", {}).items()
        if "description" not in entry
    ]
    assert silent == []


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file .*wanted a YAML file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"bytes\.yaml: not UTF-8 text at byte 3"):
        load(tmp_path / "bytes.yaml")


def test_a_file_is_read_with_its_overrides(tmp_path):
    (tmp_path / "run.yaml").write_text(SMALLEST)
    assert load(tmp_path / "run.yaml", ["parallel.tp=2"]).parallel.tp == 2
