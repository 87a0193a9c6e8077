"""Every layout trains as one process does: losses of 20 steps to 1e-5 in fp32."""

import json
from pathlib import Path

import pytest

from tiny_archs import latent
from train_curves import tiny_run, train_curves

TOLERANCE = 1e-5
STEPS = 20
GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"


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
PRIMITIVES = {
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
    "latent": lambda d: latent(d, down_bias=True, kv_scale=1.3),
    "latent-no-q-lora": lambda d: latent(d, q_lora_rank=None, out_bias=True, kv_scale=1.3),
}


def _two_layers(make):
    return lambda d: make({**d, "layers": [{**d["layers"][0], "count": 2}]})


def _plain(document):
    return document


ARCHS = {
    "dense": _two_layers(_plain),
    "four-layers": _plain,
    "four-groups": _two_layers(lambda d: _changed(d, attention={"query_groups": 4})),
    **{name: _two_layers(make) for name, make in PRIMITIVES.items()},
}
ENDS = ("alibi-layernorm", "sinks-biases", "sandwich-softcap")

# layout → ranks, config keys, the models of ARCHS that are trained at it
LAYOUTS = {
    "alone": (1, {}, tuple(ARCHS)),
    "tp2-sp": (2, {"parallel.tp": 2}, ("dense", *PRIMITIVES)),
    "tp2-no-sp": (
        2,
        {"parallel.tp": 2, "parallel.sequence_parallel": False},
        ("dense", *PRIMITIVES),
    ),
    "tp4-sp": (4, {"parallel.tp": 4}, ("four-groups",)),
    # Both ends of a model on different ranks.
    "pp2": (2, {"parallel.pp": 2, "train.micro_batch_size": 4}, ("dense", *ENDS)),
    "pp2-vpp2": (
        2,
        {"parallel.pp": 2, "parallel.vpp": 2, "train.micro_batch_size": 4},
        ("four-layers",),
    ),
    "dp2": (2, {"train.micro_batch_size": 2}, ("dense",)),
    "dp2-overlap": (
        2,
        {
            "parallel.overlap_grad_reduce": True,
            "parallel.overlap_param_gather": True,
            "train.micro_batch_size": 2,
        },
        ("dense",),
    ),
    # Nothing is sent, and all that waits for it must go on.
    "dp1-overlap": (
        1,
        {"parallel.overlap_grad_reduce": True, "parallel.overlap_param_gather": True},
        ("dense",),
    ),
    "dp2-replicated-optimizer": (
        2,
        {"optimizer.distributed": False, "train.micro_batch_size": 4},
        ("dense",),
    ),
    "tp2-pp2": (
        4,
        {"parallel.tp": 2, "parallel.pp": 2, "train.micro_batch_size": 4},
        ("dense",),
    ),
}
CASES = [
    (layout, name)
    for layout, (_, _, names) in LAYOUTS.items()
    for name in names
    if layout != "alone"
]


@pytest.fixture(scope="module")
def curves(toy_prefix, tmp_path_factory):
    """`curves(layout)`: the curve of each of its models, all trained by one set of ranks."""
    found = {}

    def train(layout):
        if layout not in found:
            world_size, overrides, names = LAYOUTS[layout]
            folder = tmp_path_factory.mktemp(layout)
            documents = {
                name: with_overrides(document_of(name, folder, toy_prefix), overrides)
                for name in names
            }
            found[layout] = train_curves(documents, world_size)
        return found[layout]

    return train


def document_of(name, folder, toy_prefix):
    """A run of `STEPS` steps of an architecture of ARCHS."""
    arch = ARCHS[name](json.loads((GOLDEN / "qwen3_tiny.json").read_text()))
    path = folder / f"{name}.json"
    path.write_text(json.dumps(arch))
    document = tiny_run(path, data=toy_prefix, save=folder)
    # One micro-batch a step, and few collectives, where the layout needs no more.
    document["train"] |= {"max_steps": STEPS, "micro_batch_size": 8}
    return document


def with_overrides(document, overrides):
    for key, value in overrides.items():
        section, _, field = key.partition(".")
        document.setdefault(section, {})[field] = value
    return document


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_a_layout_trains_like_one_process(layout, name, curves):
    found, wanted = curves(layout)[name], curves("alone")[name]
    assert len(found) == len(wanted) == STEPS
    for step, (one, two) in enumerate(zip(found, wanted, strict=True), start=1):
        assert one[0] == pytest.approx(two[0], abs=TOLERANCE), f"loss of step {step}"
        assert one[1] == pytest.approx(two[1], rel=1e-4), f"gradient norm of step {step}"
