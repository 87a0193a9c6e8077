"""Context-parallel runs train as one process does: losses of 20 steps to 1e-5 in fp32.

Gradient norms are compared too: Adam forgives a gradient that is wrong by a factor, which is what a
loss that is not summed over tokens gives under context parallel.
"""

import copy
import json
import shutil
from pathlib import Path

import pytest

from fork_ranks import run_ranks
from tiny_archs import latent

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
STEPS = 20


@pytest.fixture(scope="module")
def alone():
    """What one process makes of a run, found once for equal runs."""
    found = {}

    def train_alone(document):
        arch = Path(document["model"]["arch"]).read_text()
        model = {**document["model"], "arch": arch}
        key = json.dumps({**document, "model": model, "save": None})
        if key not in found:
            found[key] = train(document, 1)
        return found[key]

    return train_alone


def train(document, world_size):
    """(loss, gradient norm) of every step, and the losses of evaluations."""

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    lines = (Path(document["save"]["path"]) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [(record["loss"], record["grad_norm"]) for record in records if "loss" in record]
    return steps, [record["eval_loss"] for record in records if "eval_loss" in record]


def assert_same_curve(found, wanted):
    (steps, evaluations), (wanted_steps, wanted_evaluations) = found, wanted
    assert len(steps) == len(wanted_steps) >= 5
    for step, (one, two) in enumerate(zip(steps, wanted_steps, strict=True), start=1):
        assert one[0] == pytest.approx(two[0], abs=1e-5), f"loss of step {step}"
        assert one[1] == pytest.approx(two[1], rel=1e-4), f"gradient norm of step {step}"
    assert evaluations == pytest.approx(wanted_evaluations, abs=1e-5)


@pytest.fixture
def small_run(run_document):
    """One micro-batch of two rows a step, evaluated once."""
    train = {"max_steps": STEPS, "global_batch_size": 2, "micro_batch_size": 2}
    run_document["train"] |= {**train, "eval_every": STEPS, "eval_steps": 1}
    run_document["data"]["valid_fraction"] = 0.1
    return run_document


@pytest.fixture
def with_arch(small_run, tmp_path):
    """`with_arch(change)`: the run of the tiny Qwen3, two layers, changed."""

    def make(change=lambda document: document, **overrides):
        document = json.loads((GOLDEN / "qwen3_tiny.json").read_text())
        document["layers"][0]["count"] = 2
        (tmp_path / "arch.json").write_text(json.dumps(change(document)))
        small_run["model"]["arch"] = str(tmp_path / "arch.json")
        return with_overrides(small_run, overrides, tmp_path / "run")

    return make


def with_overrides(document, overrides, path):
    changed = copy.deepcopy(document)
    for key, value in overrides.items():
        section, _, field = key.partition("__")
        changed.setdefault(section, {})[field] = value
    changed["save"]["path"] = str(path)
    return changed


def over(document, tmp_path, *, micro_batch_size=2, **parallel):
    """The run cut over the ranks of a layout."""
    overrides = {f"parallel__{key}": value for key, value in parallel.items()}
    overrides["train__micro_batch_size"] = micro_batch_size
    return with_overrides(document, overrides, tmp_path / "over")


CP2 = {
    "ring": {"cp": 2, "cp_kind": "ring"},
    "ulysses": {"cp": 2, "cp_kind": "ulysses"},
    "allgather": {"cp": 2, "cp_kind": "allgather"},
}
HYBRID = {"cp": 4, "cp_kind": "hybrid", "cp_ulysses": 2}
# name → (ranks, layout, whether rows hold several documents)
LAYOUTS = {
    **{f"cp2-{kind}": (2, parallel, False) for kind, parallel in CP2.items()},
    **{f"cp2-{kind}-packed": (2, parallel, True) for kind, parallel in CP2.items()},
    "cp4-hybrid": (4, HYBRID, False),
    "tp2-cp2": (4, {"tp": 2, "cp": 2}, False),
    "pp2-cp2-packed": (4, {"pp": 2, "cp": 2, "micro_batch_size": 1}, True),
    "cp2-dp2-packed": (4, {"cp": 2, "micro_batch_size": 1}, True),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_shared_sequence_trains_like_one_process(name, with_arch, alone, tmp_path):
    world_size, parallel, is_packed = LAYOUTS[name]
    document = with_arch(data__reset_documents=is_packed)
    found = train(over(document, tmp_path, **parallel), world_size)
    assert_same_curve(found, alone(document))


def test_a_reset_at_documents_changes_the_losses(with_arch, alone, tmp_path):
    document = with_arch()
    reset = with_overrides(document, {"data__reset_documents": True}, tmp_path / "reset")
    whole, packed = alone(document), alone(reset)
    assert whole[0][0][0] != pytest.approx(packed[0][0][0], abs=1e-3)


def test_experts_are_spread_over_a_shared_sequence(small_run, moe_arch, alone, tmp_path):
    arch = json.loads(moe_arch.read_text())
    arch["layers"] = [{**layer, "count": 1} for layer in arch["layers"]]
    moe_arch.write_text(json.dumps(arch))
    small_run["model"]["arch"] = str(moe_arch)
    found = train(over(small_run, tmp_path, cp=2, ep=2), 2)
    assert_same_curve(found, alone(small_run))


def test_a_checkpoint_of_shared_sequences_goes_on_in_one_process(with_arch, alone, tmp_path):
    document = with_arch(train__max_steps=10)
    shared = over(document, tmp_path, cp=2)
    shared["save"]["every"] = 5
    train(shared, 2)
    shutil.rmtree(tmp_path / "over" / "iter_0000010")
    shared["parallel"] = {}
    assert_same_curve(train(shared, 1), alone(document))


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


def _every_feature(document):
    """Grouped queries, window, softcap, sinks and distances; blocks' tests tell them apart."""
    document["attention"] |= {"softcap": 2.0, "sinks": True}
    document["position"] = {"kind": "alibi"}
    document["layers"][0]["window"] = 9
    return document


def _learned_positions(document):
    return {**document, "position": {"kind": "learned"}}


FEATURES = [
    *((_every_feature, kind, False) for kind in CP2),
    *((latent, kind, True) for kind in ("ring", "allgather")),
    (_learned_positions, "ring", True),
]


@pytest.mark.parametrize(
    ("change", "kind", "is_packed"),
    FEATURES,
    ids=lambda value: getattr(value, "__name__", str(value)).strip("_"),
)
def test_every_primitive_shares_its_sequence_like_one_process(
    change, kind, is_packed, with_arch, alone, tmp_path
):
    document = with_arch(change, data__reset_documents=is_packed, train__max_steps=5)
    assert_same_curve(train(over(document, tmp_path, **CP2[kind]), 2), alone(document))
