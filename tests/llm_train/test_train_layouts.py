"""Every layout trains as one process does: losses of 10 steps to 1e-5 in fp32."""

import copy
import json
from pathlib import Path

import pytest

from fork_ranks import run_ranks

TOLERANCE = 1e-5


def train(document, world_size):
    """The losses and gradient norms of a run on `world_size` forked ranks."""

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    lines = (Path(document["save"]["path"]) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(r["loss"], r["grad_norm"]) for r in records if "loss" in r]


def with_overrides(document, overrides, tmp_path):
    changed = copy.deepcopy(document)
    for key, value in overrides.items():
        section, _, field = key.partition(".")
        changed.setdefault(section, {})[field] = value
    changed["save"]["path"] = str(tmp_path / "other")
    return changed


def assert_same_curve(found, wanted):
    assert len(found) == len(wanted) == 10
    for step, (one, two) in enumerate(zip(found, wanted, strict=True), start=1):
        assert one[0] == pytest.approx(two[0], abs=TOLERANCE), f"loss of step {step}"
        assert one[1] == pytest.approx(two[1], rel=1e-4), f"gradient norm of step {step}"


DENSE = {
    "tp2-sp": (2, {"parallel.tp": 2}),
    "tp2-no-sp": (2, {"parallel.tp": 2, "parallel.sequence_parallel": False}),
    "pp2": (2, {"parallel.pp": 2}),
    "pp2-vpp2": (2, {"parallel.pp": 2, "parallel.vpp": 2}),
    "dp2": (2, {"train.micro_batch_size": 2}),
    "dp2-overlap": (
        2,
        {"parallel.overlap_grad_reduce": True, "parallel.overlap_param_gather": True},
    ),
    "dp2-replicated-optimizer": (2, {"optimizer.distributed": False}),
    "tp2-pp2": (4, {"parallel.tp": 2, "parallel.pp": 2}),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_layout_trains_like_one_process(name, run_document, tmp_path):
    world_size, overrides = DENSE[name]
    wanted = train(run_document, 1)
    assert_same_curve(train(with_overrides(run_document, overrides, tmp_path), world_size), wanted)


MOE = {
    "ep2": (2, {"parallel.ep": 2}),
    "tp2-ep2": (2, {"parallel.tp": 2, "parallel.ep": 2}),
    "tp2-etp2": (2, {"parallel.tp": 2, "parallel.etp": 2}),
}


@pytest.mark.parametrize("name", MOE)
def test_expert_layout_trains_like_one_process(name, run_document, moe_arch, tmp_path):
    world_size, overrides = MOE[name]
    run_document["model"]["arch"] = str(moe_arch)
    wanted = train(run_document, 1)
    assert_same_curve(train(with_overrides(run_document, overrides, tmp_path), world_size), wanted)
