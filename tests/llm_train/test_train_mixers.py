"""Gated delta nets and Mamba2 train at every layout as one process does, and their states last."""

import json
from pathlib import Path

import pytest

import mixer_archs
from fork_ranks import run_ranks
from train_curves import train_curves

TOLERANCE, STEPS = 1e-5, 8
ARCHS = {
    "delta-net-experts": lambda d: mixer_archs.delta_net(d, has_experts=True),
    "delta-net": lambda d: mixer_archs.delta_net(d, has_experts=False),
    "state-space": mixer_archs.state_space,
    "only-mamba": mixer_archs.only_mamba,
}
LAYOUTS = {
    "tp2-sp": {"tp": 2},
    "tp2-no-sp": {"tp": 2, "sequence_parallel": False},
    "pp2": {"pp": 2},
}


@pytest.fixture(scope="module")
def made():
    """The curves of one process."""
    return {}


@pytest.fixture
def runs(run_document, tmp_path):
    """`runs(parallel, names)`: a run of 8 steps of each architecture."""
    qwen3 = json.loads(Path(run_document["model"]["arch"]).read_text())

    def make(parallel, names):
        found = {}
        for name in names:
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(ARCHS[name](qwen3)))
            found[name] = {
                **run_document,
                "model": {"arch": str(path), "init_std": 0.05},
                "train": {
                    "max_steps": STEPS,
                    "seq_length": 32,
                    "global_batch_size": 4,
                    "micro_batch_size": 2 if "pp" in parallel else 4,
                },
                "optimizer": {"lr": 4e-3, "warmup_steps": 2},
                "parallel": parallel,
            }
        return found

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mixers_train_like_one_process(layout, runs, made):
    # Experts want sequence parallel.
    names = [name for name in ARCHS if layout != "tp2-no-sp" or "experts" not in name]
    if not made:
        made.update(train_curves(runs({}, ARCHS), 1))
    found = train_curves(runs(LAYOUTS[layout], names), 2)
    for name in names:
        assert len(found[name]) == len(made[name]) == STEPS
        for step, (one, two) in enumerate(zip(found[name], made[name], strict=True), start=1):
            assert one[0] == pytest.approx(two[0], abs=TOLERANCE), f"{name}: loss of step {step}"
            assert one[1] == pytest.approx(two[1], rel=5e-4), f"{name}: norm of step {step}"
        losses = [loss for loss, _ in made[name]]
        assert sum(losses[-3:]) < sum(losses[:3]), f"{name} learns"


def test_recurrences_computed_again_are_the_same_to_the_bit(runs):
    names = ("delta-net-experts", "state-space")
    plain = runs({}, names)
    again = {f"{name} again": {**plain[name], "recompute": "selective"} for name in names}
    curves = train_curves({**plain, **again}, 1)
    for name in names:
        assert curves[f"{name} again"] == curves[name]


def train(document, world_size):
    """The losses by step; the run's folder has its checkpoints."""

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    lines = (Path(document["save"]["path"]) / "metrics.jsonl").read_text().splitlines()
    return {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}


@pytest.mark.parametrize("name", ["delta-net", "state-space"])
def test_a_checkpoint_of_two_ranks_is_read_by_one_and_by_llm_ckpt(name, runs, tmp_path):
    """Rows of several kinds lie in one another's way on the ranks, biases under one key too."""
    from llm_ckpt.source import open_source

    def document(parallel, steps, folder):
        run = runs(parallel, [name])[name]
        run["train"] = {**run["train"], "max_steps": steps}
        run["optimizer"] = {**run["optimizer"], "decay_steps": 6}
        return {**run, "save": {"path": str(tmp_path / folder), "every": 3}}

    whole = train(document({}, 6, "whole"), 1)
    train(document({"tp": 2}, 3, "cut"), 2)
    one, two = (open_source(tmp_path / folder, iteration=3) for folder in ("whole", "cut"))
    assert sorted(one.names()) == sorted(two.names())
    for tensor in one.names():
        difference = (two.read(tensor) - one.read(tensor)).abs().max().item()
        assert difference <= 1e-4, tensor
    assert train(document({}, 6, "cut"), 1) == pytest.approx(whole, abs=TOLERANCE)
