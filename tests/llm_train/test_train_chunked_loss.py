"""Losses of some tokens at a time: the same as of all, and the logits of all never exist."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fork_ranks import run_ranks
from train_curves import each_run, go, tiny_run, train_curves

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
MTP = {"layers": 1}


@pytest.fixture(scope="module")
def archs(tmp_path_factory):
    """Tied and untied ends, bounded logits, a prediction layer."""
    folder = tmp_path_factory.mktemp("archs")
    base = json.loads((GOLDEN / "qwen3_tiny.json").read_text())
    base["layers"][0]["count"] = 2
    documents = {
        "tied": {**base, "tie_embeddings": True},
        "bounded": {
            **base,
            "tie_embeddings": False,
            "output_bias": True,
            "scalars": {**base["scalars"], "logit_softcap": 3.0},
        },
        "predicting": {**base, "tie_embeddings": True, "mtp": MTP},
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return {name: folder / f"{name}.json" for name in documents}


def runs(archs, names, data, save, **parallel):
    """Each model with the loss of all tokens at once, and of parts that do not divide them."""
    found = {}
    for name in names:
        for chunk in (None, 24):
            made = tiny_run(archs[name], data=data, save=save)
            made["train"] |= {"max_steps": 3, "loss_chunk": chunk}
            made["parallel"] = parallel
            found[name, chunk] = made
    return found


LAYOUTS = {
    "alone": (1, {}, ("tied", "bounded", "predicting")),
    "tp2": (2, {"tp": 2}, ("tied", "bounded")),
    "pp2": (2, {"pp": 2}, ("tied",)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_change_no_loss_and_no_gradient_norm(layout, archs, toy_prefix, tmp_path):
    ranks, parallel, names = LAYOUTS[layout]
    found = train_curves(runs(archs, names, toy_prefix, tmp_path, **parallel), ranks)
    for name in names:
        whole = found[name, None]
        assert found[name, 24] == [pytest.approx(step, rel=1e-5, abs=1e-5) for step in whole]


def test_gradients_of_the_operator_in_parts_are_those_of_all_logits(archs, toy_prefix, tmp_path):
    documents = {}
    for name in ("tied", "predicting"):
        whole, parts = runs(archs, [name], toy_prefix, tmp_path).values()
        for made in (whole, parts):
            made["train"]["max_steps"] = 1
            made["optimizer"] = {"lr": 1e-3, "clip_grad": 0.0}
        documents |= {
            (name, "whole"): whole,
            (name, "parts"): parts | {"kernels": "llm-kernels-npu"},
        }

    def look(training, splits):
        class Log:
            def step(self, metrics):
                self.loss = metrics.loss

        log = Log()
        go(training, splits, log)
        gradients = training.chunks[0].named_parameters()
        return log.loss, {name: one.main_grad.clone() for name, one in gradients}

    found = run_ranks(lambda _rank: dict(each_run(documents, look)), 1)[0]
    for name in ("tied", "predicting"):
        (loss, gradients), (wanted_loss, wanted) = found[name, "parts"], found[name, "whole"]
        assert loss == pytest.approx(wanted_loss, abs=1e-5)
        torch.testing.assert_close(gradients, wanted, rtol=1e-5, atol=1e-5)


class Largest(TorchDispatchMode):
    """The most numbers that any operation puts out in one tensor."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [one.numel() for one in tree_iter(out) if isinstance(one, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


@pytest.mark.parametrize(
    ("name", "kernels"), [("bounded", None), ("tied", "llm-kernels-npu")], ids=["torch", "kernels"]
)
def test_no_tensor_is_as_large_as_all_logits(name, kernels, archs, toy_prefix, tmp_path):
    """A vocabulary larger than all else, so that nothing but logits can be as large."""
    arch = json.loads(archs[name].read_text()) | {"vocab_size": 5000}
    path = tmp_path / "wide.json"
    path.write_text(json.dumps(arch))
    documents = runs({"wide": path}, ["wide"], toy_prefix, tmp_path)
    for made in documents.values():
        made["train"] |= {"max_steps": 1, "global_batch_size": 4, "micro_batch_size": 4}
        # The table's own gradient, and the buffers of it, would be larger than 128 tokens' logits.
        made["train"]["seq_length"] = 256
        made["optimizer"] = {"lr": 1e-3}
        made["kernels"] = kernels

    def look(training, splits):
        class Log:
            def step(self, metrics):
                pass

        with Largest() as largest:
            go(training, splits, Log())
        return largest.numel

    found = run_ranks(lambda _rank: dict(each_run(documents, look)), 1)[0]
    logits = 4 * 256 * 5000
    assert found["wide", None] >= logits
    assert found["wide", 24] < logits / 4
