"""What saves memory changes no bit of training."""

import json
from pathlib import Path

import pytest

from fork_ranks import run_ranks


def train(document, world_size=1):
    """(loss, gradient norm) of every step of a run on forked ranks."""

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    lines = (Path(document["save"]["path"]) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(r["loss"], r["grad_norm"]) for r in records if "loss" in r]


@pytest.fixture(scope="module")
def plain_runs():
    """What a run makes without saving memory, found once for equal runs and layouts."""
    found = {}

    def train_plain(document, world_size, folder):
        model = {**document["model"], "arch": Path(document["model"]["arch"]).read_text()}
        key = json.dumps([{**document, "model": model, "save": None}, world_size])
        if key not in found:
            found[key] = train({**document, "save": {"path": str(folder)}}, world_size)
            assert len(found[key]) == document["train"]["max_steps"]
        return found[key]

    return train_plain


def _dense(document):
    document["layers"][0]["count"] = 2
    return document


def _latent_experts(document):
    """Latent attention, one dense layer and one of experts with a shared one."""
    layer = {**document["layers"][0], "mixer": "mla", "count": 1}
    document["layers"] = [layer, {**layer, "feed_forward": "moe"}]
    document["attention"] = None
    document["mla"] = {
        "heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "scale": None,
        "norm_eps": 1e-6,
        "down_bias": False,
        "out_bias": False,
        "q_scale": 1.0,
        "kv_scale": 1.0,
        "indexer": None,
    }
    document["moe"]["shared"] = {"ffn_hidden_size": 32, "gated": False}
    return document


ARCHS = {"dense": _dense, "latent-experts": _latent_experts}


@pytest.fixture
def run_of(run_document, moe_arch, tmp_path):
    """`run_of(name)`: a run of 5 steps of a model of ARCHS, two micro-batches a step."""

    def make(name):
        source = moe_arch if "experts" in name else run_document["model"]["arch"]
        document = ARCHS[name](json.loads(Path(source).read_text()))
        (tmp_path / "arch.json").write_text(json.dumps(document))
        return {
            **run_document,
            "model": {**run_document["model"], "arch": str(tmp_path / "arch.json")},
            "train": {**run_document["train"], "max_steps": 5, "global_batch_size": 4},
            "parallel": {},
        }

    return make


@pytest.fixture
def plain(plain_runs, tmp_path):
    """`plain(document, world_size)` of a run without its own save path and arch path."""

    def find(document, world_size=1):
        return plain_runs(document, world_size, tmp_path / "plain")

    return find


LAYOUTS = {
    "one": (1, {}),
    "tp2-sp": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2}),
}
RECOMPUTE = {
    "dense": {
        "full": "full",
        "block": {"kind": "full", "method": "block", "layers": 1},
        "parts": {"kind": "selective", "modules": ["core_attention", "layernorm", "activation"]},
        "mlp": {"kind": "selective", "modules": ["mlp", "layernorm"]},
    },
    "latent-experts": {
        "up": {"kind": "selective", "modules": ["mla_up_proj", "layernorm", "shared_experts"]},
        "core": {"kind": "selective", "modules": ["core_attention", "moe", "mla_up_proj"]},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("arch", "name"), [(a, n) for a, all in RECOMPUTE.items() for n in all])
def test_what_is_computed_again_is_the_same_to_the_bit(arch, name, layout, run_of, plain):
    world_size, parallel = LAYOUTS[layout]
    document = {**run_of(arch), "parallel": parallel}
    changed = {**document, "recompute": RECOMPUTE[arch][name]}
    assert train(changed, world_size) == plain(document, world_size)
