"""Tiny arch.json documents with gated delta nets and Mamba2 layers, made from another's."""

from tiny_archs import EXPERTS

MOE = {**EXPERTS, "shared": {"ffn_hidden_size": 24, "gated": True}}
GDN = {
    "key_heads": 2,
    "value_heads": 6,
    "key_head_dim": 8,
    "value_head_dim": 12,
    "conv_kernel": 4,
}
MAMBA2 = {
    "heads": 8,
    "head_dim": 6,
    "groups": 2,
    "state_dim": 10,
    "conv_kernel": 3,
    "chunk": 12,
    "conv_bias": True,
    "proj_bias": True,
    "gated_norm": True,
}


def _layers(*kinds):
    common = {"count": 1, "window": None}
    return [
        {**common, "mixer": mixer, "feed_forward": feed, "rope": mixer == "attention"}
        for mixer, feed in kinds
    ]


def delta_net(document, *, has_experts):
    """Gated delta nets and gated attention by turns, as in Qwen3-Next (or the dense Qwen3.5)."""
    feed = "moe" if has_experts else "dense"
    return {
        **document,
        "family": "qwen3_next" if has_experts else "qwen3_5_text",
        "norm": {**document["norm"], "zero_centered": True},
        "layers": _layers(("gdn", "dense"), ("attention", feed), ("gdn", feed), ("gdn", "dense")),
        "attention": {**document["attention"], "output_gate": True},
        "gdn": GDN,
        "moe": MOE if has_experts else None,
    }


def state_space(document, **mamba2):
    """Layers of one block each: Mamba2, attention, dense, as in Nemotron-H."""
    kinds = [("mamba2", "none"), ("none", "dense"), ("attention", "none"), ("mamba2", "none")]
    return {
        **document,
        "family": "nemotron_h",
        "layers": _layers(*kinds),
        "attention": {**document["attention"], "qk_norm": "none"},
        "mamba2": {**MAMBA2, **mamba2},
        "mlp": {**document["mlp"], "gated": False, "activation": "relu2"},
    }


def only_mamba(document):
    """Nothing but Mamba2 layers, without a norm before their output."""
    return {
        **document,
        "family": "mamba2",
        "layers": _layers(*[("mamba2", "none")] * 2),
        "mamba2": {**MAMBA2, "conv_bias": False, "proj_bias": False, "gated_norm": False},
        "attention": None,
        "mlp": None,
        "position": {"kind": "none"},
    }
