"""Tiny models made by transformers, saved as Hugging Face folders."""

import argparse

import torch

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "vocab_size": 250,
}


def build_model(family, *, dtype=torch.float32, seed=0, **overrides):
    """A transformers model whose every weight is random, norms and biases too."""
    import transformers

    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }
    config_class, model_class = classes[family]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**SIZES, **overrides})).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.1)
    return model


def save_model(folder, family, *, shard="5GB", **options):
    """Save such a model with transformers' own writer."""
    model = build_model(family, **options)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def load_pickle(path, *, mmap=False):
    """A Megatron rank file as Megatron-LM reads it, by torch's own loader.

    megatron-core allows `Namespace` for good when it is imported, and a `with safe_globals` would
    forbid it again when it ends: for every later test, and every rank forked from this process.
    """
    torch.serialization.add_safe_globals([argparse.Namespace])
    return torch.load(path, weights_only=True, mmap=mmap)


def read_tensors(folder):
    """Every tensor of a Hugging Face folder, by the safetensors library."""
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def assert_same_folder(left, right):
    """Two folders hold the same tensors, bit by bit."""
    a, b = read_tensors(left), read_tensors(right)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), b[name].view(torch.uint8)), name
