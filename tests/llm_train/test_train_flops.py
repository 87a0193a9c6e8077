"""Operations of a token, against a hand calculation and torch's own counter; peaks of devices."""

import copy
import json
from pathlib import Path

import pytest

from llm_train.arch import parse
from llm_train.flops import forward_flops, mean_keys, training_flops
from llm_train.peaks import bf16_peak
from tiny_archs import EXPERTS, LATENT, ZERO_ROUTER

GOLDEN = Path(__file__).parents[1] / "contracts" / "arch" / "golden"
T = 32


@pytest.fixture
def document():
    return json.loads((GOLDEN / "qwen3_tiny.json").read_text())


def facts(document, **changes):
    changed = copy.deepcopy(document) | changes
    return parse(changed, where="test")


def test_a_dense_model_by_hand(document):
    """Hidden 64, 4 heads of 32 over 2 groups, feed-forward 128 gated, vocabulary 256, 4 layers."""
    arch = facts(document)
    one = arch.attention
    assert (arch.hidden_size, one.heads, one.query_groups, one.head_dim) == (64, 4, 2, 32)
    assert (arch.mlp.ffn_hidden_size, arch.vocab_size, arch.num_layers) == (128, 256, 4)
    layer = 64 * (128 + 64 + 64) + 128 * 64 + 3 * 64 * 128
    found = forward_flops(arch, T)
    assert found.weights == 2 * (4 * layer + 256 * 64)
    # 32 queries see 1 to 32 keys: 16.5 on average.
    assert found.attention == 4 * (2 * 2 * 128 * 16.5)
    assert training_flops(arch, T) == 3 * (found.weights + found.attention)
    # Under adapters: forward, and back to the inputs. Scores have no weights.
    assert training_flops(arch, T, is_frozen=True) == 2 * found.weights + 3 * found.attention


def test_torch_counts_the_same_products_of_transformers_model(document):
    """Forward and backward of Qwen3, which computes the hidden half of the scores too."""
    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    config = transformers.Qwen3Config(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = transformers.Qwen3ForCausalLM(config)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, T, dtype=torch.long)).logits.sum().backward()
    rotary_table = 2 * 16 * T  # an outer product of positions and frequencies, once a batch
    found = forward_flops(facts(document), T)
    wanted = 3 * (found.weights + found.attention * T / mean_keys(T)) * 2 * T
    assert counter.get_total_flops() - wanted == pytest.approx(0, abs=2 * rotary_table)


def test_a_window_hides_keys():
    # Queries of 5 tokens see 1, 2, 3, 3 and 3 keys through a window of 3.
    assert mean_keys(5, 3) == 12 / 5
    assert mean_keys(5, 9) == mean_keys(5) == 3.0


def test_only_the_chosen_experts_count(document):
    shared = {"ffn_hidden_size": 16, "gated": True}
    moe = {**EXPERTS, "experts": 8, "ffn_hidden_size": 48, "shared": shared}
    layer = document["layers"][0]
    dense = facts(document)
    sparse = facts(document, mlp=None, moe=moe, layers=[{**layer, "feed_forward": "moe"}])
    feed_forward = 64 * 8 + 2 * 3 * 64 * 48 + 3 * 64 * 16 + 64
    difference = forward_flops(sparse, T).weights - forward_flops(dense, T).weights
    assert difference == 2 * 4 * (feed_forward - 3 * 64 * 128)


def test_choices_of_nothing_compute_nothing(document):
    """Balanced, 6 of 8 choices are experts: of each token's 4, 3 compute."""
    sizes = {"experts": 6, "top_k": 4, "ffn_hidden_size": 48}
    moe = {**EXPERTS, **sizes, "router": ZERO_ROUTER}
    runs = [
        {**document["layers"][0], "count": 1, "feed_forward": kind}
        for kind in ("dense_shortcut_moe", "dense")
    ]
    dense = facts(document, layers=[{**document["layers"][0], "count": 2}])
    found = forward_flops(facts(document, layers=runs, moe=moe), T)
    beside = 64 * 8 + 3 * 3 * 64 * 48
    assert found.weights - forward_flops(dense, T).weights == 2 * beside


def test_layers_that_borrow_keys_project_queries_alone(document):
    """Of four layers, in groups of three, two borrow: 2 groups of 32 for keys, and for values."""
    shared = facts(document, attention={**document["attention"], "shared_kv": 3})
    less = forward_flops(facts(document), T).weights - forward_flops(shared, T).weights
    assert less == 2 * (2 * 2 * 64 * 64)


def test_latent_attention_by_hand(document):
    """A layer of DeepSeek-V2's: both latents, their up projections, and the output."""
    mla = {**LATENT, "qk_rope_head_dim": 4, "v_head_dim": 10}
    layer = {**document["layers"][0], "mixer": "mla", "count": 1}
    found = forward_flops(facts(document, attention=None, mla=mla, layers=[layer]), T)
    queries = 64 * 24 + 24 * 4 * 12
    latent = 64 * (16 + 4) + 16 * 4 * (8 + 10)
    feed_forward = 3 * 64 * 128
    assert found.weights == 2 * (queries + latent + 4 * 10 * 64 + feed_forward + 256 * 64)
    assert found.attention == 2 * 4 * (12 + 10) * 16.5


def test_each_depth_of_multi_token_prediction_is_a_layer_and_a_head(document):
    without, with_two = facts(document), facts(document, mtp={"layers": 2})
    layer = 64 * (128 + 64 + 64) + 128 * 64 + 3 * 64 * 128
    difference = forward_flops(with_two, T).weights - forward_flops(without, T).weights
    assert difference == 2 * 2 * (layer + 2 * 64 * 64 + 256 * 64)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("Ascend910B3", 313.0),
        ("Ascend910_9392", 376.0),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_are_found_by_the_name_of_the_device(name, tera):
    assert bf16_peak(name) == (None if tera is None else tera * 1e12)
