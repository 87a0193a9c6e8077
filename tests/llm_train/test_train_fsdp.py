"""Weights cut over the data-parallel ranks train, are saved and go on as whole ones do."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fork_ranks import run_ranks
from live_tensors import live_tensors, storage_bytes
from llm_train.arch import parse as parse_arch
from llm_train.config import RunConfig
from llm_train.edge import checkpoint_files
from llm_train.plan import make_plan
from tiny_archs import EXPERTS, SIGMOID_ROUTER
from train_curves import curve_of, each_run, tiny_run, train_curves

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
STEPS = 8


@pytest.fixture(scope="module", autouse=True)
def _dynamo():
    """FSDP2 imports it at its first forward: once here, and not in every rank."""
    import torch._dynamo.compiled_autograd  # noqa: F401


def dense(arch):
    """Two layers, tied; of 3 ranks the second has rows of the gate and of the up-projection."""
    arch |= {"hidden_size": 32, "vocab_size": 250, "tie_embeddings": True}
    return arch | {"layers": [{**arch["layers"][0], "count": 2}]}


def untied(arch):
    return dense(arch) | {"tie_embeddings": False}


def experts(arch):
    """A dense layer and one of four experts with a gate of one row, which one rank has alone."""
    arch = untied(arch)
    layer = arch["layers"][0]
    arch["layers"] = [{**layer, "count": 1}, {**layer, "count": 1, "feed_forward": "moe"}]
    glu = {key: arch["mlp"][key] for key in ("activation", "gated", "bias", "clamp", "glu_offset")}
    router = {**SIGMOID_ROUTER, "pre_softmax": False, "scaling": 1.0, "group_score": "max"}
    shared = {"ffn_hidden_size": 24, "gated": True}
    moe = {**EXPERTS, "ffn_hidden_size": 24, "router": router, "shared": shared}
    return arch | {"moe": {**moe, **glu}}


ARCHS = {"dense": dense, "untied": untied, "experts": experts}


@pytest.fixture(scope="module")
def run_of(toy_prefix, tmp_path_factory):
    """`run_of(arch, folder, **sections)`: a run of 8 steps of 8 sequences."""
    root = tmp_path_factory.mktemp("fsdp")
    for name, make in ARCHS.items():
        arch = make(json.loads((GOLDEN / "qwen3_tiny.json").read_text()))
        (root / f"{name}.json").write_text(json.dumps(arch))

    def make_run(name, folder=root, **sections):
        document = tiny_run(root / f"{name}.json", data=toy_prefix, save=folder)
        document["train"] |= {"max_steps": STEPS, "micro_batch_size": 4}
        for section, changes in sections.items():
            is_section = isinstance(changes, dict) and section in document
            document[section] = {**document[section], **changes} if is_section else changes
        return document

    return make_run


@pytest.fixture(scope="module")
def alone(run_of):
    """The curve of each architecture on one process, all sequences in one micro-batch."""
    runs = {name: run_of(name, train={"micro_batch_size": 8}) for name in ("dense", "experts")}
    return train_curves(runs, 1)


def assert_near(found, wanted, *, loss=1e-5, norm=1e-4):
    assert len(found) == len(wanted) == STEPS
    for step, (one, two) in enumerate(zip(found, wanted, strict=True), start=1):
        assert one[0] == pytest.approx(two[0], abs=loss), f"loss of step {step}"
        assert one[1] == pytest.approx(two[1], rel=norm), f"gradient norm of step {step}"


# layout → ranks, `parallel`, architecture
LAYOUTS = {
    # Whole experts are cut over four ranks, all else over two.
    "tp2-dp2": (4, {"tp": 2}, "experts"),
    # Each expert is cut over two ranks, all else over four.
    "ep2-dp4": (4, {"ep": 2}, "experts"),
    # Rows are cut over the ranks that share sequences as well.
    "pp2-cp2": (4, {"pp": 2, "cp": 2, "cp_kind": "allgather"}, "dense"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sharded_layout_trains_like_one_process(layout, run_of, alone):
    world_size, parallel, arch = LAYOUTS[layout]
    size = 8 // world_size * parallel.get("tp", 1) * parallel.get("pp", 1)
    document = run_of(arch, parallel={**parallel, "fsdp": True}, train={"micro_batch_size": size})
    assert_near(train_curves({"run": document}, world_size)["run"], alone[arch])


# How layers are gathered and computed again; no bit of the training is another for it.
VARIANTS = {
    "kept gathered": {"parallel": {"fsdp": True, "fsdp_reshard_after_forward": False}},
    "full": {"parallel": {"fsdp": True}, "recompute": "full"},
    "selective": {
        "parallel": {"fsdp": True},
        "recompute": {"kind": "selective", "modules": ["core_attention", "moe", "layernorm"]},
    },
}


def test_two_ranks_train_like_one_and_the_same_bits_however_layers_are_gathered(run_of, alone):
    runs = {"plain": run_of("experts", parallel={"fsdp": True})}
    for name, sections in VARIANTS.items():
        # As long a decay, of which a few steps are taken.
        few = {"train": {"max_steps": 3}, "optimizer": {"decay_steps": STEPS}}
        runs[name] = run_of("experts", **few, **sections)
    curves = train_curves(runs, 2)
    plain = curves.pop("plain")
    assert_near(plain, alone["experts"])
    assert curves == dict.fromkeys(VARIANTS, plain[:3])


def test_bf16_trains_as_the_distributed_optimizer_does(run_of):
    """With one micro-batch the same bits; more are summed in another order, in fp32."""
    runs = {
        f"{size}-{is_sharded}": run_of(
            "untied",
            train={"precision": "bf16", "micro_batch_size": size, "max_steps": 5},
            # Clipping follows the norm, which has another last bit where rows are cut elsewhere.
            optimizer={"clip_grad": 0.0},
            parallel={"fsdp": is_sharded},
        )
        for size in (2, 4)
        for is_sharded in (False, True)
    }
    curves = train_curves(runs, 2)
    losses = {name: [loss for loss, _ in curve] for name, curve in curves.items()}
    assert losses["4-True"] == losses["4-False"]
    assert losses["2-True"] != losses["4-True"]
    assert losses["2-True"] == pytest.approx(losses["2-False"], abs=1e-4)


def kept_bytes(training, splits):
    """After training: bytes of every tensor, and those that the optimizer's rows account for."""
    curve_of(training, splits)
    rows = [one for chunk in training.trainable.chunks for one in chunk.parameters()]
    own = sum(one.nbytes for one in rows)
    tensors = [one for one in live_tensors() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    moments = sum(
        value.nbytes
        for part in training.trainable.optimizer.chained_optimizers
        for state in part.optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    )
    return own, sum(one.main_grad.nbytes for one in rows), moments, storage_bytes(tensors)


def test_each_of_two_ranks_keeps_half_of_everything_as_planned(run_of):
    document = run_of("untied", train={"max_steps": 2}, parallel={"fsdp": True})
    document["optimizer"]["warmup_steps"] = 1
    found = run_ranks(lambda _: dict(each_run({"run": document}, kept_bytes))["run"], 2)
    arch = parse_arch(json.loads(Path(document["model"]["arch"]).read_text()), where="test")
    whole = run_of("untied", parallel={"fsdp": False}, optimizer={"distributed": False})
    (of_all,) = make_plan(RunConfig.model_validate(whole), arch, 1).memory
    (planned,) = make_plan(RunConfig.model_validate(document), arch, 2).memory
    for own, gradients, moments, everything in found:
        assert own == planned.weights == of_all.weights / 2
        assert gradients == planned.gradients == of_all.gradients / 2
        assert moments == planned.optimizer == of_all.optimizer / 2
        # Nothing that was gathered is still there.
        assert everything < 1.15 * (own + gradients + moments)


def train(document, world_size):
    """Losses and gradient norms of every step of the run, those before a resume too."""

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    lines = (Path(document["save"]["path"]) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(one["loss"], one["grad_norm"]) for one in records if "loss" in one]


def test_a_run_goes_on_from_its_rows_and_from_any_other_layout(run_of, tmp_path):
    """Rows of 3 ranks end inside of the gate, the heads and the vocabulary."""
    sharded, tensor = (3, {"fsdp": True}), (2, {"tp": 2})

    def run(folder, layout, resume, *, every=2):
        world_size, parallel = layout
        steps = {"max_steps": 4, "global_batch_size": 6, "micro_batch_size": 2}
        save = {"path": str(folder), "every": every, "resume": resume}
        return train(run_of("untied", train=steps, save=save, parallel=parallel), world_size)

    def go_on(source, name, layout, **save):
        shutil.copytree(tmp_path / source, tmp_path / name)
        shutil.rmtree(checkpoint_files.iteration_folder(tmp_path / name, 4))
        return run(tmp_path / name, layout, "require", **save)

    whole = run(tmp_path / "sharded", sharded, "never")
    assert len(whole) == 4
    assert go_on("sharded", "again", sharded) == whole
    found = {
        "to tensor parallel": go_on("sharded", "tensor", tensor, every=1),
        "and back": go_on("tensor", "back", sharded),
    }
    for name, curve in found.items():
        for one, two in zip(curve, whole, strict=True):
            assert one == pytest.approx(two, abs=1e-5), name


def test_only_vectors_have_memory_while_a_sharded_model_is_built():
    from llm_train.model.unfilled import unfilled_matrices

    with unfilled_matrices():
        built = torch.nn.Linear(3, 4)
    assert built.weight.is_meta
    assert not built.bias.is_meta
    assert not torch.nn.Linear(3, 4).weight.is_meta
