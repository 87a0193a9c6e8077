"""Feed-forwards: dense and mixture of experts."""

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def dense(layer, x, at, facts):
    """fc1, activation (gated or not), fc2, under the name `at`."""
    x = _linear(layer, x, f"{at}.linear_fc1")
    activation, clamp = ACTIVATIONS[facts["activation"]], facts["clamp"]
    if not facts["gated"]:
        return _linear(layer, activation(x), f"{at}.linear_fc2")
    gate, up = x.chunk(2, dim=-1)
    if clamp is not None:
        gate, up = gate.clamp(max=clamp), up.clamp(-clamp, clamp)
    return _linear(layer, activation(gate) * (up + facts["glu_offset"]), f"{at}.linear_fc2")


def moe(layer, x, at):
    """Routed and shared experts under the name `at`; every expert sees every token."""
    facts = layer.document["moe"]
    router, shared = facts["router"], facts["shared"]
    scores = _linear(layer, x, f"{at}.router")
    bias = layer.weight(f"{at}.router.expert_bias") if router["bias"] else None
    weights, chosen = route(scores, bias, facts["top_k"], router)
    out = torch.zeros_like(x)
    for expert in range(facts["experts"] + router["zero_experts"]):
        weight = torch.where(chosen == expert, weights, 0.0).sum(-1, keepdim=True)
        is_zero = expert >= facts["experts"]
        name = f"{at}.experts.local_experts.{expert}"
        out = out + weight * (x if is_zero else dense(layer, x, name, facts))
    if shared is None:
        return out
    always = dense(layer, x, f"{at}.shared_experts", facts)
    if shared["gated"]:
        gate = layer.weight(f"{at}.shared_experts.gate_weight")
        always = always * torch.sigmoid(F.linear(x, gate))
    return out + always


def route(logits, bias, top_k, router):
    """Weights [..., K] and numbers [..., K] of the experts chosen by logits [..., E]."""
    if router["score"] == "sparsemixer":
        weights, chosen = _sparsemixer(logits, top_k)
        return weights * router["scaling"], chosen
    scores = _SCORES[router["score"]](logits)
    is_softmax = router["score"] == "softmax"
    if is_softmax and not router["pre_softmax"]:
        scores = logits
    ranked = scores if bias is None else scores + bias
    if router["groups"] is not None:
        ranked = _best_groups(ranked, router)
    chosen = ranked.topk(top_k, dim=-1).indices
    weights = scores.gather(-1, chosen)
    if is_softmax and not router["pre_softmax"]:
        weights = weights.softmax(-1)
    elif router["normalize"]:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * router["scaling"], chosen


_SCORES = {
    "softmax": lambda x: x.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
}


def _best_groups(ranked, router):
    """Minus infinity for experts outside the `top_groups` best groups of consecutive experts."""
    grouped = ranked.unflatten(-1, (router["groups"], -1))
    summed = {"max": 1, "top2": 2}[router["group_score"]]
    values = grouped.topk(summed, dim=-1).values.sum(-1)
    best = values.topk(router["top_groups"], dim=-1).indices
    is_best = torch.zeros_like(values, dtype=torch.bool).scatter(-1, best, True)
    return grouped.masked_fill(~is_best[..., None], float("-inf")).flatten(-2)


def _sparsemixer(logits, top_k, threshold=0.02):
    """Inference of SparseMixer-v2 (arXiv 2409.12136): one expert at a time, the best of the rest.

    Its weight is a softmax over what is left and no further below it than `threshold` of the
    greater of the two sizes.
    """
    left, weights, chosen = logits, [], []
    for _ in range(top_k):
        best, index = left.max(-1, keepdim=True)
        distance = (best - logits) / torch.maximum(logits.abs(), best)
        near = left.masked_fill(distance > threshold, float("-inf")).softmax(-1)
        weights.append(near.gather(-1, index))
        chosen.append(index)
        left = left.scatter(-1, index, float("-inf"))
    return torch.cat(weights, -1), torch.cat(chosen, -1)


def _linear(layer, x, name):
    bias = layer.weight(f"{name}.bias") if layer.has(f"{name}.bias") else None
    return F.linear(x, layer.weight(f"{name}.weight"), bias)
