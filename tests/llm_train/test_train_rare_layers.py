"""Shortcut experts, zero experts and shared keys train at every layout as one process does."""

import json
from pathlib import Path

import pytest
import torch

from ckpt_zoo import CASES
from fork_ranks import run_ranks
from tiny_archs import EXPERTS, LATENT, ZERO_ROUTER
from train_curves import Recorder, each_run, go, train_curves

TOLERANCE, STEPS, LAYERS, HIDDEN = 1e-5, 8, 4, 32
BY_ID = {case.id: case for case in CASES}
PAIR = [("mla", "dense_shortcut_moe"), ("mla", "dense")]
MOE = {
    **EXPERTS,
    "top_k": 3,
    "router": {**ZERO_ROUTER, "scaling": 2.5, "zero_experts": 3},
}
MLA = {
    **LATENT,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "down_bias": True,
    "out_bias": True,
    "q_scale": 1.6,
    "kv_scale": 1.8,
}


def layers(*kinds):
    return [
        {"count": 1, "window": None, "rope": True, "mixer": mixer, "feed_forward": feed}
        for mixer, feed in kinds
    ]


def shortcut(document, **changes):
    """Two pairs of LongCat-Flash's blocks."""
    return {
        **document,
        "family": "longcat_flash",
        "hidden_size": HIDDEN,
        "layers": layers(*PAIR, *PAIR),
        "attention": None,
        "mla": MLA,
        "mlp": {**document["mlp"], "ffn_hidden_size": 48},
        "moe": MOE,
        **changes,
    }


def shared_keys(document, *, shared=2, count=LAYERS, **attention):
    """Hunyuan-Large's attention, with dense feed-forwards."""
    facts = {"head_dim": 8, "qk_norm": "head_after_rope", "qkv_bias": True, "shared_kv": shared}
    return {
        **document,
        "family": "hunyuan",
        "hidden_size": HIDDEN,
        "layers": layers(*[("attention", "dense")] * count),
        "attention": {**document["attention"], **facts, **attention},
        "mlp": {**document["mlp"], "ffn_hidden_size": 48},
    }


ARCHS = {"shortcut": shortcut, "shared-keys": shared_keys}
BALANCED = {"bias_update_rate": 0.01, "aux_loss_coeff": 0.1, "z_loss_coeff": 0.01}


@pytest.fixture
def runs(run_document, tmp_path):
    """`runs(parallel, {name: (arch, sections)})`: a run of 8 steps of each."""
    qwen3 = json.loads(Path(run_document["model"]["arch"]).read_text())

    def make(parallel, wanted, *, steps=STEPS):
        found = {}
        for name, (arch, sections) in wanted.items():
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(arch(qwen3)))
            found[name] = {
                **run_document,
                "model": {"arch": str(path), "init_std": 0.1},
                "train": {
                    "max_steps": steps,
                    "seq_length": 32,
                    "global_batch_size": 8,
                    "micro_batch_size": 4,
                },
                "optimizer": {"lr": 1e-3, "warmup_steps": 2, "decay_steps": STEPS},
                "parallel": parallel,
                **sections,
            }
        return found

    return make


@pytest.fixture(scope="module")
def made():
    """The curves of one process."""
    return {}


ALLTOALL, ALLGATHER = (
    ("shortcut", {"moe": {**BALANCED, "dispatcher": kind}}) for kind in ("alltoall", "allgather")
)
SHARED = ("shared-keys", {})
# The layout, and the runs of it: an architecture and sections of its config.
LAYOUTS = {
    "tp2-sp": ({"tp": 2}, [ALLTOALL, SHARED]),
    "tp2-no-sp": ({"tp": 2, "sequence_parallel": False}, [SHARED]),
    "pp2": ({"pp": 2}, [ALLTOALL, SHARED]),
    "cp2": ({"cp": 2}, [ALLTOALL, SHARED]),
    "ep2": ({"ep": 2}, [ALLTOALL]),
    "tp2-ep2": ({"tp": 2, "ep": 2}, [ALLGATHER]),
    "tp2-etp2": ({"tp": 2, "etp": 2}, [ALLTOALL]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rare_layers_train_like_one_process(layout, runs, made):
    parallel, wanted = LAYOUTS[layout]
    if not made:
        alone = {arch: (ARCHS[arch], sections) for arch, sections in (ALLTOALL, SHARED)}
        made.update(train_curves(runs({}, alone), 1))
    documents = runs(parallel, {arch: (ARCHS[arch], sections) for arch, sections in wanted})
    for name, found in train_curves(documents, 2).items():
        assert len(found) == len(made[name]) == STEPS
        for step, (one, two) in enumerate(zip(found, made[name], strict=True), start=1):
            assert one[0] == pytest.approx(two[0], abs=TOLERANCE), f"{name}: loss of step {step}"
            assert one[1] == pytest.approx(two[1], rel=5e-4), f"{name}: norm of step {step}"
        losses = [loss for loss, _ in made[name]]
        assert sum(losses[-3:]) < sum(losses[:3]), f"{name} learns"


PARTS = {
    "shortcut": ["layernorm", "activation", "core_attention", "mla_up_proj", "moe"],
    "shared-keys": ["layernorm", "activation", "core_attention"],
}
AGAIN = {
    "kept": {},
    "each": {"kind": "full"},
    "pairs": {"kind": "full", "layers": 2},
    "first": {"kind": "full", "method": "block", "layers": 1},
    "mlp": {"kind": "selective", "modules": ["mlp", "layernorm"]},
}


@pytest.mark.parametrize("name", ARCHS)
def test_layers_computed_again_change_no_bit(name, runs):
    """Three layers share keys: their gradients are sums of three, in whatever order they come."""
    facts = {"shared-keys": lambda d: shared_keys(d, shared=3)}
    arch = facts.get(name, ARCHS[name])
    again = {**AGAIN, "parts": {"kind": "selective", "modules": PARTS[name]}}
    documents = runs({}, {key: (arch, {"recompute": each}) for key, each in again.items()}, steps=3)
    curves = train_curves(documents, 1)
    for key, curve in curves.items():
        assert curve == curves["kept"], key


def test_choices_of_nothing_count_and_are_balanced_like_experts(runs):
    """DeepSeek's rule (2408.15664) over all choices, from what the router was seen to choose."""
    sections = {"moe": {"bias_update_rate": 0.25}, "parallel": {"ep": 2}}
    documents = runs({"ep": 2}, {"it": (shortcut, sections)}, steps=1)

    def look(training, splits):
        router = training.chunks[0].decoder.layers[0].shortcut_moe.router
        counted = []
        router.register_forward_hook(lambda _m, _i, out: counted.append(out[1].sum(0)))
        go(training, splits, Recorder())
        return torch.stack(counted).sum(0), router.expert_bias

    found = run_ranks(lambda _rank: dict(each_run(documents, look))["it"], 2)
    total = sum(counted for counted, _ in found).float()
    assert total.sum() == 8 * 32 * MOE["top_k"]
    assert total[MOE["experts"] :].min() > 0
    wanted = 0.25 * torch.sign(total.mean() - total)
    for _, bias in found:
        assert torch.equal(bias, wanted)


@pytest.mark.parametrize(
    ("case", "moe"), [("longcat_flash", {"bias_update_rate": 0.0}), ("hunyuan-large", {})]
)
def test_a_folder_goes_through_two_ranks_and_back(case, moe, run_document, tmp_path):
    """Bit for bit, by the run's checkpoint and by the folder it writes itself."""
    from llm_ckpt.source import open_source

    folder = BY_ID[case].save(tmp_path / "hf")
    document = {
        **run_document,
        "model": {"load": str(folder)},
        "parallel": {"tp": 2, "ep": 2},
        "moe": moe,
        # Too little to change a weight.
        "optimizer": {"lr": 1e-30, "warmup_steps": 0, "decay_steps": 8},
        "save": {"path": str(tmp_path / "run"), "hf": True},
    }
    document["train"] = {**document["train"], "max_steps": 1}

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, 2)
    wanted = open_source(folder)
    for path in (tmp_path / "run" / "hf_0000001", tmp_path / "run"):
        found = open_source(path)
        assert sorted(found.names()) == sorted(wanted.names())
        for name in wanted.names():
            assert torch.equal(found.read(name).float(), wanted.read(name).float()), name
