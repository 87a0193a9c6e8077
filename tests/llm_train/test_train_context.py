"""Context-parallel runs train as one process does: losses of 20 steps to 1e-5 in fp32.

Gradient norms are compared too: Adam forgives a gradient that is wrong by a factor, which is what a
loss that is not summed over tokens gives under context parallel.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fork_ranks import run_ranks
from tiny_archs import EXPERTS, latent
from train_curves import Recorder, each_run, go, tiny_run

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
STEPS = 20


def _plain(document):
    return document


def _every_feature(document):
    """Grouped queries, window, softcap, sinks and distances; blocks' tests tell them apart."""
    document["attention"] |= {"softcap": 2.0, "sinks": True}
    document["position"] = {"kind": "alibi"}
    document["layers"][0]["window"] = 9
    return document


def _learned_positions(document):
    return {**document, "position": {"kind": "learned"}}


def _experts(document):
    layer = {**document["layers"][0], "count": 1}
    layers = [layer, {**layer, "feed_forward": "moe"}]
    return {**document, "layers": layers, "moe": {**EXPERTS, "ffn_hidden_size": 64}}


@dataclass(frozen=True)
class Model:
    """The tiny Qwen3 of two layers, changed; whether its rows hold several documents."""

    change: Any = _plain
    is_packed: bool = False
    steps: int = STEPS

    def run(self, folder, *, data, micro_batch_size=2, **parallel):
        """A run of one micro-batch of two rows a step, evaluated by and by, as a document."""
        arch = json.loads((GOLDEN / "qwen3_tiny.json").read_text())
        arch["layers"][0]["count"] = 2
        path = folder / f"{self.change.__name__}.json"
        path.write_text(json.dumps(self.change(arch)))
        document = tiny_run(path, data=data, save=folder / "run")
        document["train"] |= {
            "max_steps": self.steps,
            "global_batch_size": 2,
            "micro_batch_size": micro_batch_size,
            "eval_every": min(self.steps, 10),
            "eval_steps": 1,
        }
        document["data"] |= {"valid_fraction": 0.1, "reset_documents": self.is_packed}
        return {**document, "parallel": parallel}


PLAIN, PACKED = Model(), Model(is_packed=True)
CP2 = {
    "ring": {"cp": 2, "cp_kind": "ring"},
    "ulysses": {"cp": 2, "cp_kind": "ulysses"},
    "allgather": {"cp": 2, "cp_kind": "allgather"},
}
HYBRID = {"cp": 4, "cp_kind": "hybrid", "cp_ulysses": 2}
FEATURES = [
    *((Model(_every_feature, steps=5), kind) for kind in CP2),
    *((Model(latent, is_packed=True, steps=5), kind) for kind in ("ring", "allgather")),
    (Model(_learned_positions, is_packed=True, steps=5), "ring"),
]
# One set of ranks → how many, the runs that it trains: a model and its layout
RANKS = {
    "cp2": (
        2,
        {
            **{kind: (PLAIN, parallel) for kind, parallel in CP2.items()},
            **{f"{kind}-packed": (PACKED, parallel) for kind, parallel in CP2.items()},
            **{
                f"{kind}-{model.change.__name__.strip('_')}": (model, CP2[kind])
                for model, kind in FEATURES
            },
        },
    ),
    "cp4": (4, {"hybrid": (PLAIN, HYBRID)}),
    "tp2-cp2": (4, {"ring": (PLAIN, {"tp": 2, "cp": 2})}),
    "pp2-cp2": (4, {"ring-packed": (PACKED, {"pp": 2, "cp": 2, "micro_batch_size": 1})}),
    "cp2-dp2": (4, {"ring-packed": (PACKED, {"cp": 2, "micro_batch_size": 1})}),
    "cp2-ep2": (2, {"ring-experts": (Model(_experts), {"cp": 2, "ep": 2})}),
}
CASES = [(ranks, name) for ranks, (_, runs) in RANKS.items() for name in runs]
MODELS = {model for _, runs in RANKS.values() for model, _ in runs.values()}


def train_all(documents, world_size):
    """By name: (loss, gradient norm) of every step, and the losses of evaluations."""

    def look(training, splits):
        recorder = Recorder()
        go(training, splits, recorder)
        return recorder.curve, recorder.evaluations

    return run_ranks(lambda _rank: dict(each_run(documents, look)), world_size)[0]


@pytest.fixture(scope="module")
def alone(toy_prefix, tmp_path_factory):
    """By model: what one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    return train_all({model: model.run(folder, data=toy_prefix) for model in MODELS}, 1)


@pytest.fixture(scope="module")
def shared(toy_prefix, tmp_path_factory):
    """`shared(ranks)`: what a set of ranks makes of each of its runs."""
    found = {}

    def train(ranks):
        if ranks not in found:
            world_size, runs = RANKS[ranks]
            folder = tmp_path_factory.mktemp(ranks)
            documents = {
                name: model.run(folder, data=toy_prefix, **parallel)
                for name, (model, parallel) in runs.items()
            }
            found[ranks] = train_all(documents, world_size)
        return found[ranks]

    return train


def assert_same_curve(found, wanted):
    (steps, evaluations), (wanted_steps, wanted_evaluations) = found, wanted
    assert len(steps) == len(wanted_steps) >= 5
    for step, (one, two) in enumerate(zip(steps, wanted_steps, strict=True), start=1):
        assert one[0] == pytest.approx(two[0], abs=1e-5), f"loss of step {step}"
        assert one[1] == pytest.approx(two[1], rel=1e-4), f"gradient norm of step {step}"
    assert len(evaluations) == len(wanted_evaluations) >= 1
    assert evaluations == pytest.approx(wanted_evaluations, abs=1e-5)


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_a_shared_sequence_trains_like_one_process(ranks, name, shared, alone):
    model, _ = RANKS[ranks][1][name]
    found = shared(ranks)[name]
    assert len(found[0]) == model.steps
    assert_same_curve(found, alone[model])


def test_a_reset_at_documents_changes_the_losses(alone):
    (whole, _), (packed, _) = alone[PLAIN], alone[PACKED]
    assert whole[0][0] != pytest.approx(packed[0][0], abs=1e-3)


def train(document, world_size):
    """As `train_all`, of one run that keeps checkpoints."""

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    lines = (Path(document["save"]["path"]) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [(record["loss"], record["grad_norm"]) for record in records if "loss" in record]
    return steps, [record["eval_loss"] for record in records if "eval_loss" in record]


def test_a_checkpoint_of_shared_sequences_goes_on_in_one_process(toy_prefix, alone, tmp_path):
    document = PLAIN.run(tmp_path, data=toy_prefix, cp=2)
    document["train"]["max_steps"] = 10
    document["optimizer"]["decay_steps"] = STEPS
    document["save"]["every"] = 5
    train(document, 2)
    shutil.rmtree(tmp_path / "run" / "iter_0000010")
    document["parallel"] = {}
    steps, evaluations = alone[PLAIN]
    assert_same_curve(train(document, 1), (steps[:10], evaluations[:1]))


def test_keys_and_their_gradients_come_home_round_a_ring_of_four():
    """Out and gradients of each rank's share, against torch's attention of the whole."""

    def rank(rank):
        import torch
        import torch.distributed as dist

        from llm_train.model.context_parallel.blocks import Scoring
        from llm_train.model.context_parallel.place import ring_of
        from llm_train.model.context_parallel.ring import ring_attention
        from llm_train.model.context_parallel.spans import ring_plans
        from llm_train.model.context_parallel.zigzag import ContextRank, take

        dist.init_process_group("gloo")
        torch.manual_seed(0)
        sizes = [(1, 4, 32, 8), (1, 2, 32, 8), (1, 2, 32, 8), (1, 4, 32, 8)]
        q, k, v, grad = (torch.randn(size, dtype=torch.float64) for size in sizes)
        whole = [x.requires_grad_() for x in (q, k, v)]
        wanted = torch.nn.functional.scaled_dot_product_attention(
            *whole, is_causal=True, scale=0.3, enable_gqa=True
        )
        wanted = [wanted, *torch.autograd.grad(wanted, whole, grad)]
        place = ContextRank(rank=rank, size=4)
        mine = [take(x, rank=rank, size=4, dim=2).detach().requires_grad_() for x in whole]
        assert dist.group.WORLD is not None
        found = ring_attention(
            *mine,
            sinks=None,
            scoring=Scoring(scale=0.3),
            steps=ring_plans(32, place, window=None, tile=None, starts=None),
            ring=ring_of(place, dist.group.WORLD),
        )
        found = [found, *torch.autograd.grad(found, mine, take(grad, rank=rank, size=4, dim=2))]
        shares = [take(x, rank=rank, size=4, dim=2) for x in wanted]
        dist.destroy_process_group()
        return [(one - two).abs().max().item() for one, two in zip(found, shares, strict=True)]

    differences = run_ranks(rank, 4)
    assert max(max(one) for one in differences) < 1e-12, differences
