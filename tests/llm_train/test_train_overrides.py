"""YAML text and key=value words as plain values."""

import pytest

from llm_train.overrides import ConfigError, override, read_document, split_word


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("3.", 3.0),
        (".5", 0.5),
        ("-2", -2),
        ("1_000", 1000),
        ("true", True),
        ("null", None),
        ("", None),
        ("~", None),
        ("[a, 2]", ["a", 2]),
        ("{b: 1}", {"b": 1}),
        ("'3'", "3"),
        # Not what YAML 1.1 makes of them: eight, ninety, a date, truth.
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("a=b", "a=b"),
        ("..", ".."),
        ("./x", "./x"),
    ],
)
def test_a_value_is_read_by_the_rules_of_yaml_1_2(text, value):
    found = split_word(f"a.b={text}")
    assert found == (("a", "b"), value)
    assert type(found[1]) is type(value)


def test_overrides_apply_in_order_and_leave_the_document_alone():
    document = {"train": {"steps": 1, "seed": 2}, "device": "cpu"}
    changed = override(document, ["train.steps=5", "train.steps=6", "device=npu", "new.key=1"])
    assert changed == {"train": {"steps": 6, "seed": 2}, "device": "npu", "new": {"key": 1}}
    assert document == {"train": {"steps": 1, "seed": 2}, "device": "cpu"}


def test_an_override_fills_a_section_that_is_empty_in_the_file():
    assert override({"log": None}, ["log.tensorboard=true"]) == {"log": {"tensorboard": True}}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.max_steps", "found no key=value, wanted e.g. train.max_steps=10"),
        ("=3", "found no key=value"),
        ("a..b=3", "found no key=value"),
        ("a=[1", "line 1, column 3: not YAML"),
        ("a=!!python/object:os.system x", "not YAML: could not determine a constructor"),
        ("device.kind=3", "device is 'cpu', which has no keys in it"),
    ],
)
def test_a_broken_override_is_quoted(word, message):
    with pytest.raises(ConfigError) as caught:
        override({"device": "cpu"}, [word])
    assert f"override {word!r}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.yaml: found an empty file, wanted a mapping of sections"),
        ("- a", "run.yaml: found a list, wanted a mapping of sections"),
        ("a: 1\nb: [", "run.yaml: line 2, column 5: not YAML"),
        ("a: 1\nb: 2\na: 3", "run.yaml: line 3: key 'a' was already given on line 1"),
        ("t:\n  a: 1\n  a: 1", "run.yaml: line 3: key 'a' was already given on line 2"),
    ],
)
def test_a_broken_document_is_told_with_its_line(text, message):
    with pytest.raises(ConfigError) as caught:
        read_document(text, "run.yaml")
    assert message in str(caught.value)


def test_anchors_and_merges_are_understood():
    text = "base: &b {x: 1}\nother: {<<: *b, y: 2}"
    assert read_document(text, "f") == {"base": {"x": 1}, "other": {"x": 1, "y": 2}}
