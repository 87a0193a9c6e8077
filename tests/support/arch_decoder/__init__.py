"""A decoder in plain fp32 torch, written from tests/contracts/arch/SPEC.md alone.

It reads weights under megatron-core's names, so its logits prove at once that an arch.json says
all there is to say of a model and that llm-ckpt's rules put every number in its place. No caching,
no parallelism, nothing fast: a specification that runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from arch_decoder.attention import attention
from arch_decoder.feed_forward import dense, moe
from arch_decoder.latent import mla
from arch_decoder.linear import gdn, mamba2
from arch_decoder.norms import norm

MIXERS = {"attention": attention, "mla": mla, "gdn": gdn, "mamba2": mamba2}


@dataclass(frozen=True)
class Layer:
    """What a mixer or feed-forward sees of its layer: facts, weights, and what layers share.

    `weight(name)` reads in fp32 relative to the layer; `has(name)` says whether it exists.
    `shared` is one dictionary for the whole model (borrowed keys and values, a pending shortcut).
    """

    document: dict[str, Any]
    run: dict[str, Any]
    index: int
    weight: Callable[[str], torch.Tensor]
    has: Callable[[str], bool]
    shared: dict[str, Any]


def decode(document, read, names, tokens):
    """Logits [B, T, V] of tokens [B, T]; `read(name)` gives a whole tensor of any dtype."""
    weight = _in_fp32(read)
    return _logits(document, weight, _hidden(document, weight, names, tokens))


def predict(document, read, names, tokens):
    """Logits [B, T - d, V] of the token after the next d, from each prediction layer d = 1, 2, …

    DeepSeek-V3 (arXiv 2412.19437 §2.2): a layer sees the normed output of the one before it and
    the embedding of the next token; embedding and output layer are the model's own.
    """
    weight = _in_fp32(read)
    hidden, found = _hidden(document, weight, names, tokens), []
    for index in range(document["mtp"]["layers"]):
        at = f"mtp.layers.{index}."
        embedded = _embed(document, weight, tokens)[:, index + 1 :]
        parts = (("enorm", embedded), ("hnorm", hidden[:, :-1]))
        both = torch.cat([norm(document, weight, at + name, x) for name, x in parts], dim=-1)
        hidden = both @ weight(at + "eh_proj.weight").T
        layer_at = at + "transformer_layer."
        layer = _layer_at(document, document["layers"][-1], 0, layer_at, weight, names)
        hidden = _layer(layer, hidden)
        hidden = norm(document, weight, at + "final_layernorm", hidden)
        found.append(_logits(document, weight, hidden))
    return found


def _hidden(document, weight, names, tokens):
    """Normed output [B, T, H] of the last layer."""
    hidden, shared = _embed(document, weight, tokens), {}
    for index, run in enumerate(_each_layer(document)):
        prefix = f"decoder.layers.{index}."
        hidden = _layer(_layer_at(document, run, index, prefix, weight, names, shared), hidden)
    return norm(document, weight, "decoder.final_layernorm", hidden)


def _embed(document, weight, tokens):
    hidden = torch.nn.functional.embedding(tokens, weight("embedding.word_embeddings.weight"))
    if document["position"]["kind"] == "learned":
        hidden = hidden + weight("embedding.position_embeddings.weight")[: tokens.shape[1]]
    hidden = hidden * document["scalars"]["embedding"]
    if document["embedding_norm"]:
        hidden = norm(document, weight, "embedding.norm", hidden)
    return hidden


def _layer_at(document, run, index, prefix, weight, names, shared=None):
    present = set(names)
    return Layer(
        document,
        run,
        index,
        lambda name: weight(prefix + name),
        lambda name: prefix + name in present,
        {} if shared is None else shared,
    )


def _in_fp32(read):
    return lambda name: read(name).float()


def _layer(layer, hidden):
    placement, scale = layer.document["norm"]["placement"], layer.document["scalars"]["residual"]
    pending = layer.shared.pop("shortcut", None)
    steps = (
        (layer.run["mixer"], MIXERS, "input_layernorm", "post_self_attn_layernorm"),
        (layer.run["feed_forward"], FEED_FORWARDS, "pre_mlp_layernorm", "post_mlp_layernorm"),
    )
    for kind, functions, before, after in steps:
        if kind == "none":
            continue
        x = hidden if placement == "post" else norm(layer.document, layer.weight, before, hidden)
        x = functions[kind](layer, x)
        if placement != "pre":
            x = norm(layer.document, layer.weight, after, x)
        hidden = hidden + scale * x
    return hidden if pending is None else hidden + pending


def _dense(layer, x):
    return dense(layer, x, "mlp", layer.document["mlp"])


def _moe(layer, x):
    return moe(layer, x, "mlp")


def _dense_shortcut_moe(layer, x):
    layer.shared["shortcut"] = moe(layer, x, "shortcut_moe")
    return _dense(layer, x)


FEED_FORWARDS = {"dense": _dense, "moe": _moe, "dense_shortcut_moe": _dense_shortcut_moe}


def _logits(document, weight, hidden):
    tied = document["tie_embeddings"]
    table = weight("embedding.word_embeddings.weight" if tied else "output_layer.weight")
    if document["output_normalized"]:
        table = torch.nn.functional.normalize(table, dim=1)
    logits = hidden @ table.T
    if document["output_bias"]:
        logits = logits + weight("output_layer.bias")
    logits = logits * document["scalars"]["logits"]
    cap = document["scalars"]["logit_softcap"]
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _each_layer(document):
    for run in document["layers"]:
        for _ in range(run["count"]):
            yield run
