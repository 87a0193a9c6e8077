"""Rules of multi-token prediction, each told with its reason."""

import json
from pathlib import Path

import pytest

from llm_train.arch import parse
from llm_train.check import notes, problems
from llm_train.config import RunConfig

DENSE = json.loads(
    (Path(__file__).parents[1] / "contracts/arch/golden/llama_tiny.json").read_text()
)


def config(pp, **train):
    steps = {"max_steps": 1, "seq_length": 32, "global_batch_size": 8}
    return RunConfig.model_validate(
        {
            "model": {"arch": "arch.json"},
            "data": {"train": ["d"]},
            "train": {**steps, **train},
            "optimizer": {"lr": 1e-3, "warmup_steps": 0},
            "parallel": {"pp": pp},
            "save": {"path": "run"},
            "device": "cpu",
        }
    )


def arch(**changes):
    return parse({**DENSE, "mtp": {"layers": 1}, **changes}, where="test")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position": {"kind": "learned"}}, "learned positions"),
        ({"embedding_norm": True}, "normed embeddings"),
    ],
)
def test_what_only_the_first_stage_keeps_is_refused_on_two_stages(changes, named):
    wanted = (
        f"parallel: pp(2) > 1 cannot be used with mtp and {named}: the prediction layers on the "
        "last stage embed tokens too, and only token vectors are kept alike on both"
    )
    assert problems(config(2), arch(**changes), 2) == [wanted]
    assert problems(config(1), arch(**changes), 1) == []
    assert problems(config(2), arch(**changes, mtp=None), 2) == []


def test_a_weight_without_prediction_layers_is_noted():
    wanted = "train.mtp_loss_scale has no effect: the model has no prediction layers (mtp)"
    assert wanted in notes(config(1, mtp_loss_scale=0.3), arch(mtp=None))
    assert wanted not in notes(config(1, mtp_loss_scale=0.3), arch())
    assert wanted not in notes(config(1), arch(mtp=None))
