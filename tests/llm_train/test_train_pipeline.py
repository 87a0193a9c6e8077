"""Every placement of layers on stages trains as one process does: 20 losses to 1e-5 in fp32."""

import json
import shutil
from pathlib import Path

import pytest

from fork_ranks import run_ranks
from llm_ckpt.source import open_source
from llm_train.edge import checkpoint_files
from train_curves import tiny_run, train_curves

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
STEPS = 20
TOLERANCE = 1e-5
# One set of ranks → how many, the placements trained by it: layers of the model, config keys
RANKS = {
    "alone": (1, {"5": (5, {}), "8": (8, {})}),
    "pp2": (
        2,
        {
            "pp2-uneven": (5, {"pp": 2, "layers_per_stage": [3, 2]}),
            "pp2-noop": (5, {"pp": 2, "noop_layers": [5]}),
        },
    ),
    # Batched exchanges of two stages pair their sends wrongly, from four micro-batches on.
    "pp2-vpp2": (
        2,
        {
            "pp2-vpp2-uneven": (
                5,
                {"pp": 2, "vpp": 2, "layers_per_stage": [2, 1, 2, 1], "noop_layers": [1]},
            ),
        },
    ),
    "pp4": (
        4,
        {
            "pp4-empty-stage": (5, {"pp": 4, "layers_per_stage": [2, 0, 3, 0]}),
            "pp4": (8, {"pp": 4}),
        },
    ),
    "pp4-vpp2": (4, {"pp4-vpp2": (8, {"pp": 4, "vpp": 2})}),
}
CASES = [
    (ranks, name, str(layers))
    for ranks, (_, placements) in RANKS.items()
    for name, (layers, _) in placements.items()
    if ranks != "alone"
]


def deep_run(layers, *, data, folder):
    """20 steps of a model of so many small layers, four micro-batches a step."""
    arch = json.loads((GOLDEN / "qwen3_tiny.json").read_text())
    arch["layers"][0]["count"] = layers
    arch["tie_embeddings"] = layers == 5  # both ends of a pipeline hold the weight
    path = folder / f"{layers}_layers.json"
    path.write_text(json.dumps(arch))
    document = tiny_run(path, data=data, save=folder / "run")
    document["train"] |= {"max_steps": STEPS, "global_batch_size": 4, "micro_batch_size": 1}
    return document


@pytest.fixture(scope="module")
def curves(toy_prefix, tmp_path_factory):
    """`curves(ranks)`: the curve of each placement of a set of ranks."""
    found = {}

    def train(ranks):
        if ranks not in found:
            world_size, placements = RANKS[ranks]
            folder = tmp_path_factory.mktemp(ranks)
            documents = {
                name: {**deep_run(layers, data=toy_prefix, folder=folder), "parallel": parallel}
                for name, (layers, parallel) in placements.items()
            }
            found[ranks] = train_curves(documents, world_size)
        return found[ranks]

    return train


@pytest.mark.parametrize(("ranks", "name", "layers"), CASES, ids=[name for _, name, _ in CASES])
def test_placement_trains_like_one_process(ranks, name, layers, curves):
    found, wanted = curves(ranks)[name], curves("alone")[layers]
    assert len(found) == len(wanted) == STEPS
    for step, (one, two) in enumerate(zip(found, wanted, strict=True), start=1):
        assert one[0] == pytest.approx(two[0], abs=TOLERANCE), f"loss of step {step}"
        assert one[1] == pytest.approx(two[1], rel=1e-4), f"gradient norm of step {step}"


def _run(document):
    from llm_train.config_parse import parse
    from llm_train.edge.run import run

    run(parse(document, [], "test"))


def losses_after(document, world_size, *, step):
    """Losses by step of the run when it goes on from its checkpoint of `step`, newer ones gone."""
    root = Path(document["save"]["path"])
    for newer in checkpoint_files.finished_iterations(root):
        if newer > step:
            shutil.rmtree(checkpoint_files.iteration_folder(root, newer))
    run_ranks(lambda _rank: _run(document), world_size)
    lines = (root / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def weights_of(root, iteration):
    source = open_source(root, iteration=iteration)
    return {name: source.read(name) for name in source.names()}


def test_a_checkpoint_knows_nothing_of_noops_and_empty_stages(toy_prefix, tmp_path):
    document = deep_run(5, data=toy_prefix, folder=tmp_path)
    document["train"] |= {"max_steps": 6, "micro_batch_size": 2}
    document["save"]["every"] = 2
    root = Path(document["save"]["path"])
    whole = losses_after(document, 1, step=0)
    wanted = weights_of(root, 4)
    document["parallel"] = {"pp": 4, "layers_per_stage": [3, 0, 3, 1], "noop_layers": [1, 4]}
    assert losses_after(document, 4, step=2) == pytest.approx(whole, abs=TOLERANCE)
    found = weights_of(root, 4)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() < 1e-5, name
    document["parallel"] = {}
    assert losses_after(document, 1, step=4) == pytest.approx(whole, abs=TOLERANCE)


def test_a_stage_without_experts_keeps_its_checkpoints(run_document, moe_arch):
    """Its expert optimizer has nothing, and megatron-core asks that for its step."""
    run_document["model"]["arch"] = str(moe_arch)  # one dense layer, then one of experts
    run_document["parallel"] = {"pp": 2, "ep": 2, "layers_per_stage": [1, 1]}
    run_document["train"] |= {"max_steps": 4, "micro_batch_size": 2}
    run_document["save"]["every"] = 2
    whole = losses_after(run_document, 4, step=0)
    assert losses_after(run_document, 4, step=2) == whole
