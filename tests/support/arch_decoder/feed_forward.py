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
    """Routed and shared experts under the name `at`."""
    raise NotImplementedError


def _linear(layer, x, name):
    bias = layer.weight(f"{name}.bias") if layer.has(f"{name}.bias") else None
    return F.linear(x, layer.weight(f"{name}.weight"), bias)
