"""Recurrent layers in chunks: transformers' logits, the same to the bit however a text is cut."""

import random

import pytest
import torch

from ckpt_zoo import CASES, Case
from llm_infer.model.cache import StateShape, chunk_tokens
from native_decoder import logits_of, open_decoder

BY_ID = {case.id: case for case in CASES}
# Heads as wide as those of published models, so that products take the routes of those.
WIDE = {
    "qwen3_5_text": {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 64,
        "linear_conv_kernel_dim": 4,
    },
    "mamba2": {
        "num_heads": 6,
        "head_dim": 64,
        "expand": 8,
        "n_groups": 2,
        "state_size": 128,
        "conv_kernel": 4,
    },
}
LENGTH = 150


@pytest.fixture(scope="module", params=sorted(WIDE))
def opened(request, tmp_path_factory):
    """A folder with room for 256 tokens, two texts and their logits by transformers."""
    case = BY_ID[request.param]
    settings = {**case.config, **WIDE[request.param]}
    if "max_position_embeddings" in settings:
        settings["max_position_embeddings"] = 256
    case = Case(case.family, settings)
    folder = case.save(tmp_path_factory.mktemp("chunks") / "hf")
    tokens = torch.randint(1, 250, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    return folder, tokens, case.expected_logits(folder, tokens)


@pytest.mark.parametrize("block_tokens", [64, 16, 12])
def test_a_text_has_the_same_bits_however_it_is_cut(opened, block_tokens):
    folder, tokens, expected = opened
    decoder = open_decoder(folder, block_tokens=block_tokens, context=256)
    whole = logits_of(decoder, tokens, block_tokens=block_tokens)
    assert (whole - expected).abs().max() <= 1e-4
    draw = random.Random(block_tokens)
    for count in (3, 12):
        cuts = sorted(draw.sample(range(1, LENGTH), count))
        assert torch.equal(logits_of(decoder, tokens, cuts=cuts, block_tokens=block_tokens), whole)
    one_by_one = range(1, LENGTH)
    found = logits_of(decoder, tokens[:1], cuts=one_by_one, block_tokens=block_tokens)
    assert torch.equal(found, whole[:1])


def test_chunks_are_as_long_as_blocks_divide_into():
    assert [chunk_tokens(size) for size in (64, 16, 12, 4, 3)] == [8, 8, 4, 4, 1]


def test_what_a_block_keeps_is_counted():
    """A state of 6 numbers in float32, and inputs of 5 channels of 3 + 7 tokens in 16 bits."""
    shape = StateShape(state=(1, 2, 3), reach=3, channels=5)
    assert shape.bytes_of_token(element_bytes=2, block_tokens=16) == -(-(6 * 4 + 10 * 5 * 2) // 16)
