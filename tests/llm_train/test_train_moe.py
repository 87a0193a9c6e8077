"""Experts train alike at every layout, dispatcher and kernel, balanced as their formulas say."""

import copy
import json
from pathlib import Path

import pytest

from fork_ranks import run_ranks
from train_curves import each_run

STEPS = 20
LOSSES = ("loss", "aux_loss", "seq_aux_loss", "z_loss")

ROUTER = {
    "score": "sigmoid",
    "pre_softmax": True,
    "normalize": True,
    "scaling": 2.5,
    "bias": True,
    "groups": 2,
    "top_groups": 1,
    "group_score": "top2",
    "linear_bias": False,
    "zero_experts": 0,
}
EXPERTS = {
    "experts": 8,
    "top_k": 2,
    "ffn_hidden_size": 16,
    "activation": "silu",
    "gated": True,
    "bias": False,
    "clamp": None,
    "glu_offset": 0.0,
    "shared": {"ffn_hidden_size": 24, "gated": True},
    "router": ROUTER,
}
# As DeepSeek-V3's, and as gpt-oss's, each behind a dense layer.
BALANCED = EXPERTS
BIASED = {
    **EXPERTS,
    "bias": True,
    "activation": "quick_gelu",
    "clamp": 0.5,
    "glu_offset": 1.0,
    "shared": None,
    "router": {
        **ROUTER,
        "score": "softmax",
        "pre_softmax": False,
        "bias": False,
        "linear_bias": True,
        "groups": None,
        "top_groups": None,
        "group_score": "max",
    },
}
# Weights so large that a loss that is off shows in the training loss.
BALANCE = {
    "aux_loss_coeff": 0.1,
    "seq_aux_loss_coeff": 0.1,
    "z_loss_coeff": 0.1,
    "bias_update_rate": 0.01,
}


@pytest.fixture
def moe_run(run_document, tmp_path):
    """`moe_run(moe facts)`: a run of 20 steps of two tiny layers, dense and moe."""

    def make(moe, **train):
        arch = json.loads(Path(run_document["model"]["arch"]).read_text())
        layer = {**arch["layers"][0], "count": 1}
        mlp = {key: moe[key] for key in ("activation", "gated", "clamp", "glu_offset")}
        arch |= {
            "hidden_size": 32,
            "layers": [layer, {**layer, "feed_forward": "moe"}],
            "moe": moe,
            "mlp": {**arch["mlp"], **mlp, "ffn_hidden_size": 48, "bias": moe["bias"]},
        }
        path = tmp_path / "moe.json"
        path.write_text(json.dumps(arch))
        document = copy.deepcopy(run_document)
        document["model"]["arch"] = str(path)
        sizes = {"max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 2}
        document["train"] |= {**sizes, **train}
        return document

    return make


class Steps:
    """All that every step reports."""

    def __init__(self):
        self.found = []

    def step(self, metrics):
        self.found.append({name: getattr(metrics, name) for name in (*LOSSES, "grad_norm")})


def train(document, world_size, parallel, sections):
    """The steps of one run for each moe section, on the same ranks."""
    runs = {
        name: {**document, "parallel": parallel, "moe": section}
        for name, section in sections.items()
    }

    def look(training, splits):
        steps = Steps()
        training.go(splits, steps)
        return steps.found

    return run_ranks(lambda _rank: dict(each_run(runs, look)), world_size)[0]


@pytest.fixture(scope="module")
def alone():
    """What one process makes of a run, found once for each name."""
    found = {}

    def train_alone(document, name, section):
        if name not in found:
            found[name] = train(document, 1, {}, {name: section})[name]
        return found[name]

    return train_alone


def assert_same_curve(found, wanted):
    assert len(found) == len(wanted) == STEPS
    for step, (one, two) in enumerate(zip(found, wanted, strict=True), start=1):
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4), step
        for name in LOSSES:
            assert one[name] == pytest.approx(two[name], abs=1e-5), (name, step)


GROUPED_ALLGATHER = {"dispatcher": "allgather", "grouped_gemm": True}
LAYOUTS = {
    # Whole experts beside cut attention: gradients were once summed over the wrong ranks.
    "tp2": (2, {"tp": 2}, [{}]),
    "etp2": (2, {"etp": 2}, [{}]),
    "ep2": (2, {"ep": 2}, [{"shared_expert_overlap": True}, {"dispatcher": "allgather"}]),
    "tp2-ep2": (2, {"tp": 2, "ep": 2}, [{}, GROUPED_ALLGATHER]),
    "tp2-ep2-etp2": (
        4,
        {"tp": 2, "ep": 2, "etp": 2},
        [{"grouped_gemm": True}, {"dispatcher": "allgather"}],
    ),
    # One stage has no experts and no balancing losses.
    "tp2-pp2-ep2": (4, {"tp": 2, "pp": 2, "ep": 2}, [{}]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_balanced_experts_train_like_one_process(name, moe_run, alone):
    world_size, parallel, sections = LAYOUTS[name]
    document = moe_run(BALANCED)
    wanted = alone(document, "balanced", BALANCE)
    assert all(wanted[-1][loss] > 0.5 for loss in LOSSES)
    runs = {str(section): {**BALANCE, **section} for section in sections}
    for found in train(document, world_size, parallel, runs).values():
        assert_same_curve(found, wanted)


BIASED_LAYOUTS = {"tp2-ep2": {"tp": 2, "ep": 2}, "tp2-etp2": {"tp": 2, "etp": 2}}


@pytest.mark.parametrize("name", BIASED_LAYOUTS)
def test_experts_with_biases_train_like_one_process(name, moe_run, alone):
    document = moe_run(BIASED)
    wanted = alone(document, "biased", {})
    runs = {"plain": {}, "grouped": GROUPED_ALLGATHER}
    for found in train(document, 2, BIASED_LAYOUTS[name], runs).values():
        assert_same_curve(found, wanted)


def test_filling_experts_up_to_their_capacity_changes_nothing_on_two_ranks(moe_run, alone):
    document = moe_run(BIASED)
    # By position: weights near each other fall on either side of a capacity as rounding has it.
    limit = {"capacity_factor": 1.0, "drop_policy": "position"}
    wanted = alone(document, "capacity", {"dispatcher": "allgather", **limit})
    unlimited = alone(document, "biased", {})
    assert wanted[-1]["loss"] != pytest.approx(unlimited[-1]["loss"], abs=1e-3)
    filled = {"pad_to_capacity": True, "grouped_gemm": True, **limit}
    found = train(document, 2, {"ep": 2}, {"filled": filled})["filled"]
    assert_same_curve(found, wanted)
