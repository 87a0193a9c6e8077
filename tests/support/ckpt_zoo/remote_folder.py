"""Folders under the hub's names, and models of transformers that compute the same."""

import json

import torch
from safetensors.torch import load_file, save_file

from ckpt_zoo.case import write_config

VOCAB = 251


def writer(config, shapes):
    """A function that writes config.json and random tensors of `shapes` {name: shape}."""

    def write(folder, seed, dtype):
        write_config(folder, config)
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: _random(name, shape, generator) for name, shape in shapes.items()}
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return write


def read(folder):
    """config.json and all tensors in fp32."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    return config, {name: tensor.float() for name, tensor in tensors.items()}


def layers(count, **shapes):
    """Shapes of `count` equal layers; a key is a name with `{i}` in the place of the layer."""
    return {name.format(i=i): shape for i in range(count) for name, shape in shapes.items()}


def run(model, state, tokens):
    """Logits of a transformers model that is given exactly `state`."""
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        return model.eval()(tokens, use_cache=False).logits.float()


def stack_experts(state, count, layer, *, gate, up, down):
    """gate_up_proj and down_proj of transformers 5 from one tensor for each expert.

    `gate`, `up`, `down` are names with `{i}` and `{e}`.
    """

    def of(pattern, expert):
        return state[pattern.format(i=layer, e=expert)]

    both = [torch.cat([of(gate, e), of(up, e)]) for e in range(count)]
    return {
        f"model.layers.{layer}.mlp.experts.gate_up_proj": torch.stack(both),
        f"model.layers.{layer}.mlp.experts.down_proj": torch.stack(
            [of(down, e) for e in range(count)]
        ),
    }


def _random(name, shape, generator):
    def uniform(low, high):
        return torch.rand(shape, generator=generator) * (high - low) + low

    if len(shape) == 1 and name.endswith((".weight", ".scale")):
        return uniform(0.5, 1.5)
    if name.endswith("expert_bias"):
        # Not negative: transformers gives experts of groups not chosen the score 0.
        return uniform(0.0, 0.3)
    if len(shape) == 1:
        return uniform(-0.3, 0.3)
    return torch.randn(shape, generator=generator) * 0.1
