"""Frozen parameters and learning rates of their own."""

import pytest
import torch

from fork_ranks import RankError, run_ranks
from train_curves import each_run, steps_of, tiny_run

STEPS = 3


def moved(document, world_size=1):
    """By parameter, what training has added to it; of each rank's own run."""

    def look(training, splits):
        (chunk,) = training.chunks
        before = {name: p.detach().clone() for name, p in chunk.named_parameters()}

        steps = steps_of(training, splits, ["lr"])
        changes = {n: p.detach() - before[n] for n, p in chunk.named_parameters()}
        return changes, [step["lr"] for step in steps]

    return run_ranks(lambda _rank: dict(each_run({"it": document}, look))["it"], world_size)[0]


@pytest.fixture
def document(two_layers, toy_prefix, tmp_path):
    made = tiny_run(two_layers, data=toy_prefix, save=tmp_path / "run")
    made["train"] |= {"max_steps": STEPS}
    made["optimizer"] = {"lr": 1e-3, "weight_decay": 0.0, "decay": "constant", "clip_grad": 0.0}
    return made


def test_what_globs_match_does_not_train_and_all_else_does(document):
    document["optimizer"]["frozen"] = ["embedding.*", "decoder.layers.0.*"]
    document["recompute"] = {"kind": "full"}  # with nothing before it that needs a gradient
    found, _ = moved(document)
    frozen = {name for name, change in found.items() if not change.any()}
    assert frozen == {n for n in found if n.startswith(("embedding.", "decoder.layers.0."))}
    assert frozen < found.keys()


@pytest.mark.parametrize("memory", [{}, {"reuse_parameter_copy": False, "optimizer_state": "bf16"}])
def test_a_first_step_of_adam_is_the_rate_times_the_factor(document, memory):
    """Adam's first update is lr · sign(gradient), whatever the gradient."""
    document["train"]["max_steps"] = 1
    document["memory"] = memory
    document["optimizer"]["lr_scales"] = {"*.mlp.*": 0.25, "decoder.*": 2.0}
    found, lrs = moved(document)
    assert lrs == [1e-3]
    for name, change in found.items():
        rate = 0.25e-3 if ".mlp." in name else 2e-3 if name.startswith("decoder.") else 1e-3
        largest = change.abs().max()
        torch.testing.assert_close(largest, torch.tensor(rate), rtol=1e-2, atol=0)


def test_a_glob_without_a_match_is_named(document):
    document["optimizer"]["frozen"] = ["decoder.layer.*"]
    with pytest.raises(RankError, match=r"optimizer.frozen: 'decoder.layer.\*' matches none of"):
        moved(document)


def test_freezing_everything_is_refused(document):
    document["optimizer"]["frozen"] = ["*"]
    with pytest.raises(RankError, match=r"optimizer.frozen: \* match every parameter; want some"):
        moved(document)
