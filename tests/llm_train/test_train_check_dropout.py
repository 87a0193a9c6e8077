"""Which attention cannot drop weights, each told with its reason."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from llm_train.arch import parse
from llm_train.check import problems
from llm_train.config import RunConfig

DENSE = json.loads(
    (Path(__file__).parents[1] / "contracts/arch/golden/llama_tiny.json").read_text()
)


def run_config(train=None, **sections):
    sizes = {"max_steps": 1, "seq_length": 32, "global_batch_size": 8}
    return RunConfig.model_validate(
        {
            "model": {"arch": "arch.json"},
            "data": {"train": ["d"]},
            "train": {**sizes, **(train or {"attention_dropout": 0.1})},
            "optimizer": {"lr": 1e-3, "warmup_steps": 0},
            "save": {"path": "run"},
            "device": "cpu",
            **sections,
        }
    )


def arch(**attention):
    return parse({**DENSE, "attention": {**DENSE["attention"], **attention}}, where="test")


@pytest.mark.parametrize(
    ("sections", "attention", "named"),
    [
        ({"parallel": {"cp": 2}}, {}, "parallel.cp(2)"),
        ({"data": {"train": ["d"], "reset_documents": True}}, {}, "data.reset_documents"),
        ({}, {"softcap": 30.0}, "attention.softcap"),
        ({}, {"sinks": True}, "attention.sinks"),
    ],
)
def test_only_plain_attention_drops_weights(sections, attention, named):
    wanted = (
        f"train.attention_dropout(0.1) cannot be used with {named}: it is built for plain "
        "attention over whole rows alone; train.hidden_dropout can be used"
    )
    size = 2 if "parallel" in sections else 1
    assert problems(run_config(**sections), arch(**attention), size) == [wanted]
    hidden = {"hidden_dropout": 0.1}
    assert problems(run_config(hidden, **sections), arch(**attention), size) == []


def test_windows_and_distances_drop_like_any_other():
    layers = [{**DENSE["layers"][0], "window": 8}]
    assert problems(run_config(), parse({**DENSE, "layers": layers}, where="test"), 1) == []


def test_there_is_attention_to_drop_from():
    layers = [{**DENSE["layers"][0], "mixer": "none"}]
    without = parse({**DENSE, "layers": layers, "attention": None}, where="test")
    wanted = "train.attention_dropout(0.1) needs attention layers; this model has none"
    assert problems(run_config(), without, 1) == [wanted]


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_at_least_nothing_and_less_than_all(share):
    with pytest.raises(ValidationError):
        run_config({"hidden_dropout": share})
