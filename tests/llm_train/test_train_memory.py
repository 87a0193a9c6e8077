"""What saves memory changes no bit of training."""

import json
from pathlib import Path

import pytest

from fork_ranks import run_ranks
from tiny_archs import latent
from train_curves import each_run, train_curves


def _dense(document):
    document["layers"][0]["count"] = 2
    return document


def _latent_experts(document):
    """Latent attention, one dense layer and one of experts with a shared one."""
    layer = {**document["layers"][0], "count": 1}
    document["layers"] = [layer, {**layer, "feed_forward": "moe"}]
    document["moe"]["shared"] = {"ffn_hidden_size": 32, "gated": False}
    return latent(document)


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


OFFLOAD = {
    "offload": {"offload_activations": ["self_attention", "mlp"]},
    "offload-norms": {
        "offload_activations": ["input_layernorm", "core_attention", "pre_mlp_layernorm", "mlp"]
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("arch", RECOMPUTE)
def test_what_is_computed_again_or_offloaded_is_the_same_to_the_bit(arch, layout, run_of):
    world_size, parallel = LAYOUTS[layout]
    plain = {**run_of(arch), "parallel": parallel}
    runs = {name: {**plain, "recompute": again} for name, again in RECOMPUTE[arch].items()}
    runs |= {name: {**plain, "memory": memory} for name, memory in OFFLOAD.items()}
    again = {"kind": "selective", "modules": ["layernorm", "activation"]}
    runs["offload-and-recompute"] = {**runs["offload"], "recompute": again}
    curves = train_curves({"plain": plain, **runs}, world_size)
    assert len(curves["plain"]) == 5
    assert curves == dict.fromkeys(curves, curves["plain"])


def kept_bytes(training, splits):
    """What one forward keeps for backward, less the weights."""
    import torch

    chunk = training.chunks[0]
    kept = []

    def keep(tensor):
        kept.append(tensor.untyped_storage())
        return tensor

    sample = torch.stack([splits.train[i]["tokens"] for i in range(4)])
    positions = torch.arange(sample.shape[1]).expand_as(sample)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = chunk(sample, positions, None, labels=sample)
    weights = {p.untyped_storage().data_ptr() for p in chunk.parameters()}
    sizes = {s.data_ptr(): s.nbytes() for s in kept if s.nbytes()}
    assert loss.requires_grad
    return sum(size for place, size in sizes.items() if place not in weights)


# What is not kept, in floats a token and layer, counted by hand: the outputs dropped, and of a
# whole feed-forward or layer all between its input and its output (at least its widest parts).
NOT_KEPT = {
    "dense": {
        "layernorm": 2 * 64,
        "activation": 128,
        "mlp": 256 + 2 * 128,
        # Its inputs and output are others' too; alone it keeps a sum a head, and a seed.
        "core_attention": 4 - 1,
    },
    "latent-experts": {"mla_up_proj": 2 * 4 * 16, "shared_experts": 32},
}


@pytest.mark.parametrize("arch", NOT_KEPT)
def test_what_is_computed_again_is_not_kept(arch, run_of):
    plain = run_of(arch)
    runs = {
        name: {**plain, "recompute": {"kind": "selective", "modules": [name]}}
        for name in NOT_KEPT[arch]
    }
    runs["full"] = {**plain, "recompute": "full"}
    rank = lambda _: dict(each_run({"plain": plain, **runs}, kept_bytes))  # noqa: E731
    kept = run_ranks(rank, 1)[0]
    tokens, layers = 4 * 32, 1 if arch == "latent-experts" else 2
    for name, floats in NOT_KEPT[arch].items():
        assert kept["plain"] - kept[name] >= tokens * layers * floats * 4, name
    # One input a layer, what the ends of the model keep, and nothing else.
    assert kept["full"] < kept["plain"] / 3


# What is not kept on the device, in floats a token and layer, counted by hand: inputs, projected
# heads, what attention puts out; of attention alone its rotated heads, for others keep the rest;
# of a feed-forward its input and what its linears put out.
NOT_ON_DEVICE = {
    "self_attention": 64 + (4 + 2 + 2) * 32 + 4 * 32,
    "core_attention": (4 + 2) * 32,
    "mlp": 64 + 2 * 128 + 128,
    "input_layernorm": 64,
}


def test_what_is_offloaded_is_not_kept_on_the_device(run_of):
    plain = run_of("dense")
    runs = {name: {**plain, "memory": {"offload_activations": [name]}} for name in NOT_ON_DEVICE}
    rank = lambda _: dict(each_run({"plain": plain, **runs}, kept_bytes))  # noqa: E731
    kept = run_ranks(rank, 1)[0]
    for name, floats in NOT_ON_DEVICE.items():
        assert kept["plain"] - kept[name] >= 4 * 32 * 2 * floats * 4, name
