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
        {
            "parallel.overlap_grad_reduce": True,
            "parallel.overlap_param_gather": True,
            "train.micro_batch_size": 2,
        },
    ),
    "dp2-replicated-optimizer": (2, {"optimizer.distributed": False}),
    "tp2-pp2": (4, {"parallel.tp": 2, "parallel.pp": 2}),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_layout_trains_like_one_process(name, run_document, alone, tmp_path):
    world_size, overrides = DENSE[name]
    wanted = alone(run_document)
    assert_same_curve(train(with_overrides(run_document, overrides, tmp_path), world_size), wanted)


def _latent(document, **changes):
    latent = {
        "heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "scale": None,
        "norm_eps": 1e-6,
        "down_bias": True,
        "out_bias": False,
        "q_scale": 1.0,
        "kv_scale": 1.3,
        "indexer": None,
    }
    layers = [{**run, "mixer": "mla"} for run in document["layers"]]
    return {**document, "attention": None, "mla": {**latent, **changes}, "layers": layers}


def _changed(document, **sections):
    """The document with keys of its sections changed."""
    return {
        **document,
        **{
            name: {**document[name], **value} if isinstance(value, dict) else value
            for name, value in sections.items()
        },
    }


# Primitives whose gradients meet across tensor-parallel ranks, several to a model.
ARCHS = {
    "sandwich-softcap": lambda d: _changed(
        d,
        norm={"placement": "sandwich", "zero_centered": True},
        attention={"softcap": 5.0, "qk_norm": "none"},
        scalars={"embedding": 8.0, "residual": 0.7, "logits": 0.5, "logit_softcap": 3.0},
    ),
    "sinks-biases": lambda d: _changed(
        d,
        attention={"sinks": True, "qkv_bias": True, "out_bias": True, "qk_norm": "none"},
        mlp={"activation": "quick_gelu", "clamp": 0.5, "glu_offset": 1.0, "bias": True},
        layers=[{**d["layers"][0], "window": 9}],
        output_bias=True,
        tie_embeddings=False,
    ),
    "all-heads-norm": lambda d: _changed(
        d, norm={"placement": "post"}, attention={"qk_norm": "full", "output_gate": True}
    ),
    "alibi-layernorm": lambda d: _changed(
        {**d, "position": {"kind": "alibi"}, "embedding_norm": True, "tie_embeddings": True},
        norm={"kind": "layer"},
        mlp={"activation": "gelu", "gated": False, "bias": True},
        attention={"qk_norm": "none"},
    ),
    "learned": lambda d: {**d, "position": {"kind": "learned"}},
    "late-norm": lambda d: _changed(
        d, attention={"qk_norm": "head_after_rope"}, position={"interleaved": True, "fraction": 0.5}
    ),
    "latent": _latent,
    "latent-no-q-lora": lambda d: _latent(d, q_lora_rank=None, out_bias=True),
}
TENSOR_PARALLEL = {"tp2-sp": True, "tp2-no-sp": False}


@pytest.fixture
def arch_run(run_document, tmp_path):
    """`arch_run(name)`: the run with an architecture of ARCHS."""

    def make(name):
        document = json.loads(Path(run_document["model"]["arch"]).read_text())
        document["layers"][0]["count"] = 2
        (tmp_path / "arch.json").write_text(json.dumps(ARCHS[name](document)))
        run_document["model"]["arch"] = str(tmp_path / "arch.json")
        return run_document

    return make


@pytest.mark.parametrize("layout", TENSOR_PARALLEL)
@pytest.mark.parametrize("name", ARCHS)
def test_every_primitive_trains_under_tensor_parallel_like_one_process(
    name, layout, arch_run, alone, tmp_path
):
    document = arch_run(name)
    wanted = alone(document)
    overrides = {"parallel.tp": 2, "parallel.sequence_parallel": TENSOR_PARALLEL[layout]}
    assert_same_curve(train(with_overrides(document, overrides, tmp_path), 2), wanted)


@pytest.mark.parametrize("name", ["alibi-layernorm", "sinks-biases", "sandwich-softcap"])
def test_both_ends_of_a_model_train_in_pipeline_stages_like_one_process(
    name, arch_run, alone, tmp_path
):
    document = arch_run(name)
    wanted = alone(document)
    assert_same_curve(train(with_overrides(document, {"parallel.pp": 2}, tmp_path), 2), wanted)
