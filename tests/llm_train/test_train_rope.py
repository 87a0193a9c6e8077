"""Rotary frequencies equal those transformers computes."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llm_train.arch import Rope
from llm_train.model.rope import inverse_frequencies

HEAD_DIM = 64


@pytest.mark.parametrize(
    ("scaling", "parameters"),
    [
        (None, {"rope_type": "default"}),
        ({"kind": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {
                "kind": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
    ],
    ids=["default", "linear", "llama3"],
)
def test_inverse_frequencies_equal_transformers(scaling, parameters):
    config = LlamaConfig(
        hidden_size=HEAD_DIM,
        num_attention_heads=1,
        max_position_embeddings=131072,
        rope_parameters={**parameters, "rope_theta": 500000.0},
    )
    wanted = LlamaRotaryEmbedding(config).inv_freq
    rope = Rope.model_validate(
        {
            "kind": "rope",
            "base": 500000.0,
            "fraction": 1.0,
            "interleaved": False,
            "scaling": scaling,
        }
    )
    torch.testing.assert_close(inverse_frequencies(rope, HEAD_DIM), wanted, atol=0, rtol=1e-6)
