"""config.json of released mixtures of experts, judged by transformers."""

import pytest
import transformers
from safetensors.torch import load_file, save_file

import ckpt_zoo
from ckpt_zoo.moe import CASES
from llm_ckpt.errors import ArchError
from llm_ckpt.families import family_named
from llm_ckpt.source import open_source


def sizes(vocab, hidden, inner, layers, heads, groups, length, **others):
    """The keys that all of them share."""
    return {
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "use_cache": True,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": length,
        **others,
    }


GLM = {
    "attention_bias": True,
    "first_k_dense_replace": 3,
    "head_dim": 128,
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "routed_scaling_factor": 2.5,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "use_qk_norm": True,
}
GPT_OSS_YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "truncate": False,
}
PHI_LONGROPE = {
    "long_factor": [1.0 + i for i in range(64)],
    "long_mscale": 1.243163121016122,
    "original_max_position_embeddings": 4096,
    "short_factor": [1.0 + i / 64 for i in range(64)],
    "short_mscale": 1.243163121016122,
    "type": "longrope",
}
HUB = {
    "Mixtral-8x7B": (
        "mixtral",
        sizes(
            *(32000, 4096, 14336, 32, 32, 8, 32768),
            num_experts_per_tok=2,
            num_local_experts=8,
            output_router_logits=False,
            rms_norm_eps=1e-05,
            rope_theta=1000000.0,
            router_aux_loss_coef=0.02,
            sliding_window=None,
            tie_word_embeddings=False,
        ),
    ),
    "Qwen2-57B-A14B": (
        "qwen2_moe",
        sizes(
            *(151936, 3584, 18944, 28, 28, 4, 32768),
            decoder_sparse_step=1,
            max_window_layers=28,
            moe_intermediate_size=2560,
            norm_topk_prob=False,
            num_experts=64,
            num_experts_per_tok=8,
            output_router_logits=False,
            rms_norm_eps=1e-06,
            rope_theta=1000000.0,
            router_aux_loss_coef=0.001,
            shared_expert_intermediate_size=20480,
            sliding_window=65536,
            tie_word_embeddings=False,
            use_sliding_window=False,
        ),
    ),
    "Qwen3-235B-A22B": (
        "qwen3_moe",
        sizes(
            *(151936, 4096, 12288, 94, 64, 4, 40960),
            attention_bias=False,
            decoder_sparse_step=1,
            head_dim=128,
            max_window_layers=94,
            mlp_only_layers=[],
            moe_intermediate_size=1536,
            norm_topk_prob=True,
            num_experts=128,
            num_experts_per_tok=8,
            output_router_logits=False,
            rms_norm_eps=1e-06,
            rope_scaling=None,
            rope_theta=1000000.0,
            router_aux_loss_coef=0.001,
            sliding_window=None,
            tie_word_embeddings=False,
            use_sliding_window=False,
        ),
    ),
    "GLM-4.5": ("glm4_moe", sizes(151552, 5120, 12288, 92, 96, 8, 131072, **GLM)),
    "GLM-4.5-Air": (
        "glm4_moe",
        sizes(
            *(151552, 4096, 10944, 46, 96, 8, 131072),
            **GLM
            | {
                "first_k_dense_replace": 1,
                "moe_intermediate_size": 1408,
                "n_routed_experts": 128,
                "routed_scaling_factor": 1.0,
                "use_qk_norm": False,
            },
        ),
    ),
    "gpt-oss-20b": (
        "gpt_oss",
        sizes(
            *(201088, 2880, 2880, 24, 64, 8, 131072),
            attention_bias=True,
            experts_per_token=4,
            head_dim=64,
            initial_context_length=4096,
            layer_types=["sliding_attention", "full_attention"] * 12,
            num_experts_per_tok=4,
            num_local_experts=32,
            output_router_logits=False,
            quantization_config={"modules_to_not_convert": [], "quant_method": "mxfp4"},
            rms_norm_eps=1e-05,
            rope_scaling=GPT_OSS_YARN,
            rope_theta=150000,
            router_aux_loss_coef=0.9,
            sliding_window=128,
            swiglu_limit=7.0,
            tie_word_embeddings=False,
        ),
    ),
    "Phi-3.5-MoE": (
        "phimoe",
        sizes(
            *(32064, 4096, 6400, 32, 32, 8, 131072),
            attention_bias=True,
            hidden_dropout=0.0,
            input_jitter_noise=0.01,
            lm_head_bias=True,
            num_experts_per_tok=2,
            num_local_experts=16,
            original_max_position_embeddings=4096,
            output_router_logits=False,
            rms_norm_eps=1e-05,
            rope_scaling=PHI_LONGROPE,
            rope_theta=10000.0,
            router_aux_loss_coef=0.0,
            router_jitter_noise=0.01,
            sliding_window=131072,
            tie_word_embeddings=False,
        ),
    ),
    "MiniMax-M2": (
        "minimax_m2",
        sizes(
            *(200064, 3072, 1536, 62, 48, 8, 196608),
            attn_type_list=[1] * 62,
            head_dim=128,
            layernorm_full_attention_beta=1.0,
            layernorm_linear_attention_beta=1.0,
            layernorm_mlp_beta=1.0,
            mlp_intermediate_size=8192,
            mtp_transformer_layers=1,
            num_experts_per_tok=8,
            num_local_experts=256,
            num_mtp_modules=3,
            output_router_logits=False,
            qk_norm_type="per_layer",
            rms_norm_eps=1e-06,
            rope_theta=5000000,
            rotary_dim=64,
            router_aux_loss_coef=0.001,
            router_jitter_noise=0.0,
            scoring_func="sigmoid",
            shared_intermediate_size=0,
            shared_moe_mode="sigmoid",
            sliding_window=None,
            tie_word_embeddings=False,
            use_mtp=True,
            use_qk_norm=True,
            use_routing_bias=True,
        ),
    ),
    "Hunyuan-A13B": (
        "hunyuan_v1_moe",
        sizes(
            *(128167, 4096, 3072, 32, 32, 8, 32768),
            add_classification_head=False,
            attention_bias=False,
            attention_head_dim=128,
            head_dim=128,
            moe_intermediate_size=[3072] * 32,
            moe_layer_num_skipped=0,
            moe_topk=[8] * 32,
            norm_topk_prob=True,
            norm_type="rms",
            num_experts=64,
            num_shared_expert=[1] * 32,
            pretraining_tp=1,
            rms_norm_eps=1e-05,
            rope_scaling={
                "alpha": 1000.0,
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "type": "dynamic",
            },
            rope_theta=10000.0,
            tie_word_embeddings=True,
            use_cla=False,
            use_mixed_mlp_moe=True,
            use_qk_norm=True,
            use_rotary_pos_emb=True,
        ),
    ),
    "ERNIE-4.5-21B-A3B": (
        "ernie4_5_moe",
        sizes(
            *(103424, 2560, 12288, 28, 20, 4, 131072),
            moe_capacity=[64, 64, 64],
            moe_gate="topk",
            moe_intermediate_size=1536,
            moe_k=6,
            moe_layer_end_index=27,
            moe_layer_interval=1,
            moe_layer_start_index=1,
            moe_num_experts=64,
            moe_num_shared_experts=2,
            moe_use_aux_free=True,
            num_nextn_predict_layers=1,
            rms_norm_eps=1e-05,
            rope_theta=500000,
            tie_word_embeddings=True,
            use_bias=False,
        ),
    ),
    "dots.llm1": (
        "dots1",
        sizes(
            *(152064, 4096, 10944, 62, 32, 32, 32768),
            attention_bias=False,
            ep_size=1,
            first_k_dense_replace=1,
            max_window_layers=62,
            moe_intermediate_size=1408,
            moe_layer_freq=1,
            n_group=1,
            n_routed_experts=128,
            n_shared_experts=2,
            norm_topk_prob=True,
            num_experts_per_tok=6,
            num_nextn_predict_layers=0,
            pretraining_tp=1,
            rms_norm_eps=1e-05,
            rope_scaling=None,
            rope_theta=10000000,
            routed_scaling_factor=2.5,
            scoring_func="noaux_tc",
            sliding_window=None,
            tie_word_embeddings=False,
            topk_group=1,
            topk_method="noaux_tc",
            use_sliding_window=False,
        ),
    ),
    "OLMoE-1B-7B": (
        "olmoe",
        sizes(
            *(50304, 2048, 1024, 16, 16, 16, 4096),
            attention_bias=False,
            clip_qkv=None,
            norm_topk_prob=False,
            num_experts=64,
            num_experts_per_tok=8,
            output_router_logits=False,
            rope_scaling=None,
            rope_theta=10000.0,
            router_aux_loss_coef=0.01,
            tie_word_embeddings=False,
        ),
    ),
    "granite-3.0-1b-a400m": (
        "granitemoe",
        sizes(
            *(49155, 1024, 512, 24, 16, 8, 4096),
            attention_bias=False,
            attention_multiplier=0.015625,
            embedding_multiplier=12.0,
            logits_scaling=6.0,
            num_experts_per_tok=8,
            num_local_experts=32,
            output_router_logits=False,
            residual_multiplier=0.22,
            rms_norm_eps=1e-06,
            rope_scaling=None,
            rope_theta=10000,
            router_aux_loss_coef=0.0,
            tie_word_embeddings=True,
        ),
    ),
}
# What a released config says twice, in a name that transformers keeps and does not read.
IDLE = {"attention_head_dim", "experts_per_token", "num_shared_expert", "rotary_dim"}


@pytest.mark.parametrize("name", HUB)
def test_a_released_config_says_what_transformers_understands_of_it(name):
    family, config = HUB[name]
    ours = family_named(family, where="test")
    full = transformers.AutoConfig.for_model(family, **config).to_dict()
    kept = {key: value for key, value in full.items() if key not in IDLE}
    found = ours.read_config({"model_type": family, **config}, where=name)
    assert found == ours.read_config(kept, where="transformers")
    assert found == ours.read_config(ours.write_config(found, dtype="bfloat16"), where="ours")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_defaults_are_those_of_transformers(case):
    """Only the keys of the zoo's case, against all that transformers writes."""
    ours = family_named(case.family, where="test")
    full = transformers.AutoConfig.for_model(case.family, **case.config).to_dict()
    short = ours.read_config({"model_type": case.family, **case.config}, where="short")
    assert short == ours.read_config(full, where="full")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Phi-3.5-MoE", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1 cannot be"),
        (
            "Phi-3.5-MoE",
            {"rope_scaling": PHI_LONGROPE | {"long_mscale": 2.0}},
            "short_mscale=1.243163121016122 and long_mscale=2.0 differ",
        ),
        ("gpt-oss-20b", {"swiglu_alpha": 1.0}, "swiglu_alpha=1.0 cannot be converted, want 1.702"),
        ("gpt-oss-20b", {"experts_per_token": 2}, "are two names of one thing"),
        ("OLMoE-1B-7B", {"clip_qkv": 8.0}, "clip_qkv=8.0 cannot be converted"),
        ("MiniMax-M2", {"use_routing_bias": False}, "use_routing_bias=False cannot be"),
        ("Hunyuan-A13B", {"moe_topk": [8] * 31 + [4]}, "differs between layers"),
        ("Hunyuan-A13B", {"num_shared_expert": [2] * 32}, "want 1"),
        ("GLM-4.5", {"num_mtp_layers": 2}, "disagree, want one number"),
        ("ERNIE-4.5-21B-A3B", {"use_bias": True}, "use_bias=True cannot be converted"),
    ],
)
def test_what_arch_json_cannot_say_is_refused(name, options, message):
    family, config = HUB[name]
    with pytest.raises(ArchError, match=message):
        family_named(family, where="t").read_config({**config, **options}, where="config.json")


@pytest.mark.parametrize(
    ("model", "names"),
    {
        "ernie4_5_moe": ("mtp_block.0.mlp.up_proj.weight", "mtp_linear_proj.0.weight"),
        "longcat_flash": ("mtp.embed_tokens.weight", "mtp.layers.0.eh_proj.weight"),
    }.items(),
)
def test_prediction_layers_that_arch_json_cannot_say_are_left_out_and_said(model, names, tmp_path):
    case = next(case for case in ckpt_zoo.CASES if case.id == model)
    path = case.save(tmp_path / "hf") / "model.safetensors"
    tensors = load_file(path)
    for name in names:
        tensors[f"model.{name}"] = tensors["model.norm.weight"].clone()
    save_file(tensors, path, {"format": "pt"})
    with open_source(tmp_path / "hf") as source:
        (note,) = source.notes
    assert f"2 tensors that arch.json cannot describe are left out: model.{names[0]}" in note
