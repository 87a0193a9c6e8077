"""Schedules and batch ramps that cannot be are refused with their equation."""

import pytest
from pydantic import ValidationError

from llm_train.arch import parse
from llm_train.check import problems
from llm_train.config import RunConfig


def run(**changes):
    document = {
        "model": {"arch": "a"},
        "data": {"train": ["d"]},
        "train": {"max_steps": 10, "seq_length": 32, "global_batch_size": 16},
        "optimizer": {"lr": 1e-3},
        "save": {"path": "r"},
    }
    for key, value in changes.items():
        section, _, field = key.partition("__")
        document.setdefault(section, {})[field] = value
    return RunConfig.model_validate(document)


@pytest.fixture(scope="module")
def arch():
    import json
    from pathlib import Path

    golden = Path(__file__).parents[1] / "contracts" / "arch" / "golden" / "qwen3_tiny.json"
    return parse(json.loads(golden.read_text()), where="test")


def ramp(start, increment, samples=64):
    return {"start": start, "increment": increment, "samples": samples}


def test_a_ramp_in_whole_steps_is_no_problem(arch):
    config = run(train__batch_ramp=ramp(4, 4), train__micro_batch_size=2)
    assert problems(config, arch, 2) == []


@pytest.mark.parametrize(
    ("start", "increment", "growth"), [(16, 4, 0), (20, 4, -4), (4, 5, 12), (15, 2, 1)]
)
def test_a_ramp_that_does_not_arrive_is_refused(arch, start, increment, growth):
    assert problems(run(train__batch_ramp=ramp(start, increment)), arch, 1) == [
        f"train.batch_ramp: global_batch_size(16) - start({start}) = {growth} is not a multiple "
        f"of increment({increment}) above 0"
    ]


def test_every_batch_of_a_ramp_divides(arch):
    config = run(train__batch_ramp=ramp(4, 6), train__micro_batch_size=2)
    assert problems(config, arch, 1) == []
    assert problems(config, arch, 2) == [
        "train.batch_ramp: a batch of 10 sequences is not a multiple of micro_batch_size(2) * "
        "dp(2) = 4"
    ]
    virtual = run(train__batch_ramp=ramp(4, 3), parallel__pp=2, parallel__vpp=2)
    assert problems(virtual, arch, 2) == [
        "train.batch_ramp: a batch of 7 sequences is not a multiple of micro_batch_size(1) * "
        "dp(1) * pp(2) = 2"
    ]


def test_a_decay_longer_than_what_follows_the_warm_up_is_refused(arch):
    wsd = {"optimizer__decay": "wsd", "optimizer__warmup_steps": 4}
    assert problems(run(**wsd, optimizer__wsd_decay_steps=6), arch, 1) == []
    assert problems(run(**wsd, optimizer__wsd_decay_steps=7), arch, 1) == [
        "optimizer: wsd_decay_steps(7) > decay_steps(10) - warmup_steps(4) = 6"
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer__decay": "wsd"}, "decay=wsd with wsd_decay_steps=None: wanted both"),
        ({"optimizer__wsd_decay_steps": 3}, "decay=cosine with wsd_decay_steps=3: wanted both"),
        ({"optimizer__wsd_decay": "cosine"}, "wsd_decay=cosine, but decay=cosine"),
        ({"train__timeout_s": 0}, "greater than 0"),
        ({"save__seconds": 0}, "greater than 0"),
        ({"train__on_nan": "ignore"}, "'stop' or 'skip'"),
    ],
)
def test_settings_that_contradict_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        run(**settings)
