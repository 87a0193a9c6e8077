"""config.json in the shape of released models, old keys and idle ones and all.

Written down from memory, not downloaded: their numbers prove nothing. The judge is transformers,
which reads each and writes what it understood, and ours must say the same of both.
"""

import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ckpt_zoo.dense import CASES
from llm_ckpt.errors import ArchError
from llm_ckpt.families import family_named
from llm_ckpt.source import open_source

IDS = {"bos_token_id": 1, "eos_token_id": 2, "use_cache": True, "initializer_range": 0.02}


def sizes(vocab, hidden, inner, layers, heads, groups, length, **others):
    """The eight keys that most families share."""
    return {
        **IDS,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": length,
        **others,
    }


LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LONG = {"long_factor": [1.0 + i for i in range(48)], "short_factor": [1.0] * 48}
BLOOM = {
    **IDS,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "hidden_dropout": 0.0,
    "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True,
    "n_embed": 4096,
    "n_inner": None,
    "n_layer": 30,
    "num_attention_heads": 32,
    "offset_alibi": 100,
    "pretraining_tp": 4,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "unk_token_id": 0,
    "vocab_size": 250880,
}
HUB = {
    "Llama-3.1-8B": (
        "llama",
        sizes(
            *(128256, 4096, 14336, 32, 32, 8, 131072),
            attention_bias=False,
            mlp_bias=False,
            pretraining_tp=1,
            rms_norm_eps=1e-05,
            rope_scaling=LLAMA3_ROPE,
            rope_theta=500000.0,
            tie_word_embeddings=False,
            torch_dtype="bfloat16",
        ),
    ),
    "Mistral-7B-v0.1": (
        "mistral",
        sizes(32000, 4096, 14336, 32, 32, 8, 32768, sliding_window=4096, rope_theta=10000.0),
    ),
    "Mistral-Nemo": (
        "mistral",
        sizes(
            *(131072, 5120, 14336, 40, 32, 8, 131072),
            sliding_window=None,
            head_dim=128,
            rope_theta=1000000.0,
        ),
    ),
    "Qwen2.5-7B": (
        "qwen2",
        sizes(
            *(152064, 3584, 18944, 28, 28, 4, 131072),
            max_window_layers=28,
            rms_norm_eps=1e-06,
            rope_theta=1000000.0,
            sliding_window=131072,
            use_mrope=False,
            use_sliding_window=False,
        ),
    ),
    "Qwen2.5-7B-long": (
        "qwen2",
        sizes(
            *(152064, 3584, 18944, 28, 28, 4, 32768),
            rope_theta=1000000.0,
            sliding_window=None,
            rope_scaling={
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
                "type": "yarn",
            },
        ),
    ),
    "Qwen1.5-7B-windows": (
        "qwen2",
        sizes(
            *(151936, 4096, 11008, 32, 32, 32, 32768),
            max_window_layers=28,
            sliding_window=32768,
            use_sliding_window=True,
        ),
    ),
    "gemma-7b": (
        "gemma",
        sizes(
            *(256000, 3072, 24576, 28, 16, 16, 8192),
            head_dim=256,
            hidden_act="gelu",
            hidden_activation=None,
            rope_scaling=None,
        ),
    ),
    "gemma-2-9b": (
        "gemma2",
        sizes(
            *(256000, 3584, 14336, 42, 16, 8, 8192),
            attn_logit_softcapping=50.0,
            cache_implementation="hybrid",
            final_logit_softcapping=30.0,
            head_dim=256,
            hidden_act="gelu_pytorch_tanh",
            hidden_activation="gelu_pytorch_tanh",
            query_pre_attn_scalar=256,
            sliding_window=4096,
            sliding_window_size=4096,
        ),
    ),
    "Phi-3-mini-4k": (
        "phi3",
        sizes(
            *(32064, 3072, 8192, 32, 32, 32, 4096),
            auto_map={"AutoConfig": "configuration_phi3.Phi3Config"},
            attention_bias=False,
            embd_pdrop=0.0,
            original_max_position_embeddings=4096,
            pad_token_id=32000,
            rope_scaling=None,
            sliding_window=2047,
        ),
    ),
    "Phi-3-mini-128k": (
        "phi3",
        sizes(
            *(32064, 3072, 8192, 32, 32, 32, 131072),
            original_max_position_embeddings=4096,
            pad_token_id=32000,
            rope_scaling={**LONG, "type": "longrope"},
            sliding_window=262144,
        ),
    ),
    "Phi-4-mini": (
        "phi3",
        sizes(
            *(200064, 3072, 8192, 32, 24, 8, 131072),
            full_attn_mod=1,
            interpolate_factor=1,
            lm_head_bias=False,
            mlp_bias=False,
            original_max_position_embeddings=4096,
            partial_rotary_factor=0.75,
            rope_scaling={**LONG, "type": "longrope"},
            sliding_window=262144,
            tie_word_embeddings=True,
        ),
    ),
    "GLM-4-9B-0414": (
        "glm4",
        sizes(
            *(151552, 4096, 13696, 40, 32, 2, 32768),
            attention_bias=False,
            head_dim=128,
            partial_rotary_factor=0.5,
            rope_theta=10000.0,
        ),
    ),
    "internlm3-8b": (
        "internlm3",
        sizes(
            *(128512, 4096, 10240, 48, 32, 2, 32768),
            auto_map={"AutoModel": "modeling_internlm3.InternLM3Model"},
            bias=False,
            head_dim=128,
            qkv_bias=False,
            rope_scaling={"factor": 6.0, "rope_type": "dynamic"},
            rope_theta=50000000,
        ),
    ),
    "OLMo-2-7B": (
        "olmo2",
        sizes(100352, 4096, 11008, 32, 32, 32, 4096, rms_norm_eps=1e-06, rope_theta=500000),
    ),
    "SmolLM3-3B": (
        "smollm3",
        sizes(
            *(128256, 2048, 11008, 36, 16, 4, 65536),
            attention_bias=False,
            max_window_layers=28,
            no_rope_layer_interval=4,
            no_rope_layers=[1, 1, 1, 0] * 9,
            pretraining_tp=2,
            rope_theta=5000000.0,
            sliding_window=None,
            use_sliding_window=False,
        ),
    ),
    "granite-3.1-8b": (
        "granite",
        sizes(
            *(49155, 4096, 12800, 40, 32, 8, 131072),
            attention_multiplier=0.0078125,
            embedding_multiplier=12.0,
            logits_scaling=16.0,
            residual_multiplier=0.22,
            rope_theta=10000000.0,
            tie_word_embeddings=True,
        ),
    ),
    "starcoder2-3b": (
        "starcoder2",
        sizes(
            *(49152, 3072, 12288, 30, 24, 2, 16384),
            embedding_dropout=0.1,
            hidden_act="gelu_pytorch_tanh",
            mlp_type="default",
            norm_epsilon=1e-05,
            norm_type="layer_norm",
            rope_theta=999999.4420358813,
            sliding_window=4096,
            use_bias=True,
        ),
    ),
    "Hunyuan-7B": (
        "hunyuan_v1_dense",
        sizes(
            *(128167, 4096, 14336, 32, 32, 8, 32768),
            add_classification_head=False,
            attention_head_dim=128,
            head_dim=128,
            norm_type="rms",
            rope_scaling={
                "alpha": 1000.0,
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "type": "dynamic",
            },
            use_cla=False,
            use_qk_norm=True,
            use_rotary_pos_emb=True,
        ),
    ),
    "EXAONE-4.0-32B": (
        "exaone4",
        sizes(
            *(102400, 5120, 27392, 64, 40, 8, 131072),
            layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 16,
            rope_scaling={**LLAMA3_ROPE, "factor": 16.0},
            rope_theta=1000000,
            sliding_window=4096,
            sliding_window_pattern="LLLG",
        ),
    ),
    "bloom-7b1": ("bloom", BLOOM),
    "gpt2": (
        "gpt2",
        {
            **IDS,
            "activation_function": "gelu_new",
            "attn_pdrop": 0.1,
            "layer_norm_epsilon": 1e-05,
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "summary_type": "cls_index",
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
            "vocab_size": 50257,
        },
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_a_released_config_says_what_transformers_understands_of_it(name):
    family, config = HUB[name]
    ours = family_named(family, where="test")
    asked = {"model_type": family, "architectures": [ours.architecture], **config}
    full = transformers.AutoConfig.for_model(family, **config).to_dict()
    idle = {"attention_head_dim", "n_ctx", "num_labels", "sliding_window_size"}
    kept = {key: value for key, value in full.items() if key not in idle}
    assert ours.read_config(asked, where=name) == ours.read_config(kept, where="transformers")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_defaults_are_those_of_transformers(case):
    """Only the keys of the zoo's case, against all that transformers writes."""
    ours = family_named(case.family, where="test")
    full = transformers.AutoConfig.for_model(case.family, **case.config).to_dict()
    short = ours.read_config({"model_type": case.family, **case.config}, where="short")
    assert short == ours.read_config(full, where="full")


@pytest.mark.parametrize("old", ["su", "yarn"])
def test_phi3s_older_names_of_longrope_say_the_same(old):
    """Transformers 5.23 refuses them in its own validation, which runs before they are renamed."""
    family, config = HUB["Phi-3-mini-128k"]
    ours = family_named(family, where="test")
    older = {**config, "rope_scaling": {**LONG, "type": old}}
    assert ours.read_config(older, where="old") == ours.read_config(config, where="new")


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_a_folder_saved_without_the_head_is_read(name, tmp_path):
    """As openai-community/gpt2 is: no `transformer.`, and the causal mask beside the weights."""
    case = next(case for case in CASES if case.family == name)
    whole = case.save(tmp_path / "whole")
    bare = tmp_path / "bare"
    shutil.copytree(whole, bare)
    tensors = load_file(bare / "model.safetensors")
    stripped = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    if name == "gpt2":
        stripped["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    save_file(stripped, bare / "model.safetensors")
    with open_source(whole) as wanted, open_source(bare) as found:
        assert found.names() == wanted.names()
        for key in wanted.names():
            assert torch.equal(found.read(key), wanted.read(key))


def test_two_names_of_one_thing_that_disagree_are_refused():
    config = {**HUB["internlm3-8b"][1], "attention_bias": True}
    with pytest.raises(ArchError, match="attention_bias=True and qkv_bias=False are two names"):
        family_named("internlm3", where="t").read_config(config, where="config.json")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Qwen2.5-7B", {"use_mrope": True}, "use_mrope=True cannot be converted, want False"),
        ("gemma-7b", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("bloom-7b1", {"apply_residual_connection_post_layernorm": True}, "want False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "want False"),
        ("Hunyuan-7B", {"use_cla": True}, "use_cla=True cannot be converted"),
        ("GLM-4-9B-0414", {"quantization_config": {"quant_method": "gptq"}}, "'gptq' cannot be"),
        (
            "Qwen2.5-7B-long",
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 2.0}},
            r"attention_factor=2\.0 cannot be converted, want 1\.13863",
        ),
        (
            "SmolLM3-3B",
            {"no_rope_layers": [1]},
            "no_rope_layers has 1 entries, num_hidden_layers is 36",
        ),
    ],
)
def test_what_would_be_another_model_is_refused(name, options, message):
    family, config = HUB[name]
    with pytest.raises(ArchError, match=message):
        family_named(family, where="t").read_config({**config, **options}, where="config.json")


def test_olmo3_with_positions_of_its_own_in_windows_is_refused():
    """arch.json has one position for all layers."""
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}
    config = sizes(100278, 4096, 11008, 32, 32, 32, 65536, rope_scaling=yarn)
    full = transformers.AutoConfig.for_model("olmo3", **config).to_dict()
    with pytest.raises(ArchError, match="want the same positions in every layer"):
        family_named("olmo3", where="t").read_config(full, where="config.json")
