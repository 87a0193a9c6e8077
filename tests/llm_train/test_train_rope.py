"""Rotary tables equal those transformers computes, and turn vectors as its models do."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as turn_pairs
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as turn_halves

from llm_train.arch import Rope
from llm_train.model.rope import attention_factor, inverse_frequencies, rotate

HEAD_DIM, POSITIONS, BASE = 64, 4096, 500000.0
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = {"original_max_position_embeddings": 1024}
YARN = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, **ORIGINAL}
FACTORS = {
    "short_factor": [1.0 + i / 32 for i in range(32)],
    "long_factor": [2.0 + i for i in range(32)],
}
CASES = {
    "default": (None, {}),
    "linear": ({"kind": "linear", "factor": 4.0}, {"factor": 4.0}),
    "dynamic": ({"kind": "dynamic", "factor": 4.0}, {"factor": 4.0}),
    "llama3": ({"kind": "llama3", **LLAMA3, **ORIGINAL}, {**LLAMA3, **ORIGINAL}),
    "yarn": (
        {"kind": "yarn", **YARN, "mscale": None, "mscale_all_dim": None, "truncate": True},
        YARN,
    ),
    "yarn-mscale": (
        {"kind": "yarn", **YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False},
    ),
    "longrope": (
        {"kind": "longrope", **FACTORS, **ORIGINAL, "attention_factor": None},
        {**FACTORS, **ORIGINAL},
    ),
}


def rope_of(scaling, *, is_interleaved=False):
    facts = {"kind": "rope", "base": BASE, "fraction": 1.0, "interleaved": is_interleaved}
    return Rope.model_validate({**facts, "scaling": scaling})


@pytest.mark.parametrize("tokens", [512, 8192])
@pytest.mark.parametrize("name", CASES)
def test_cosines_and_sines_equal_transformers(name, tokens):
    scaling, parameters = CASES[name]
    kind = {"rope_type": "default" if scaling is None else scaling["kind"]}
    config = LlamaConfig(
        hidden_size=HEAD_DIM,
        num_attention_heads=1,
        max_position_embeddings=POSITIONS,
        rope_parameters={**parameters, **kind, "rope_theta": BASE},
    )
    wanted = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(tokens)[None])
    rope = rope_of(scaling)
    sizes = {"tokens": tokens, "max_positions": POSITIONS}
    angles = torch.outer(
        torch.arange(tokens).float(), inverse_frequencies(rope, dim=HEAD_DIM, **sizes)
    )
    factor = attention_factor(rope, max_positions=POSITIONS)
    for found, other in zip((angles.cos(), angles.sin()), wanted, strict=True):
        half = other[0, :, : HEAD_DIM // 2]
        torch.testing.assert_close(found * factor, half, atol=2e-3 * tokens / 8192, rtol=0)


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_a_rotation_turns_vectors_as_transformers_does(is_interleaved):
    """Half-split pairs as Llama, neighbouring pairs of half the head as GLM."""
    dim = HEAD_DIM // 2 if is_interleaved else HEAD_DIM
    x = torch.randn(16, 2, 3, HEAD_DIM)  # [T, B, H, D]
    rope = rope_of(None)
    frequencies = inverse_frequencies(rope, dim=dim, tokens=16, max_positions=POSITIONS)
    angles = torch.outer(torch.arange(16).float(), frequencies)
    table = torch.cat([angles.cos(), angles.sin()], dim=-1)[:, None, None, :]
    found = rotate(x, table, is_interleaved=is_interleaved)
    both = torch.cat([angles, angles], dim=-1)[None]
    turn = turn_pairs if is_interleaved else turn_halves
    wanted, _ = turn(x.permute(1, 2, 0, 3), x.permute(1, 2, 0, 3), both.cos(), both.sin())
    torch.testing.assert_close(found, wanted.permute(2, 0, 1, 3), atol=1e-6, rtol=1e-6)
