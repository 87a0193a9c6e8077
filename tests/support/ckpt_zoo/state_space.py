"""Tiny models with state-space or linear-attention layers that transformers ships."""

from pathlib import Path

import torch

from ckpt_zoo.case import Case, randomize

MAMBA2 = {
    "vocab_size": 250,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_heads": 8,
    "head_dim": 12,
    "n_groups": 2,
    "state_size": 10,
    "conv_kernel": 3,
    "chunk_size": 7,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GDN = {
    "vocab_size": 250,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 14,
    "linear_conv_kernel_dim": 3,
}
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}
NEMOTRON_H = {
    "vocab_size": 250,
    "hidden_size": 48,
    "layers_block_type": [
        *("linear_attention", "full_attention", "mlp", "linear_attention", "moe"),
        *("linear_attention", "moe", "mlp"),
    ],
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "intermediate_size": 36,
    "ssm_state_size": 10,
    "mamba_num_heads": 8,
    "mamba_head_dim": 14,
    "n_groups": 2,
    "conv_kernel": 3,
    "chunk_size": 7,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 28,
    "routed_scaling_factor": 2.5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
BAMBA = {
    "vocab_size": 250,
    "hidden_size": 48,
    "intermediate_size": 36,
    "num_hidden_layers": 4,
    "attn_layer_indices": [1],
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 10,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 7,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def with_prediction_layer(case):
    """Writes the folder of `case` and a prediction layer, which transformers has not and ignores.

    It is a copy of the last layer's names with other numbers.
    """

    def write(folder: Path, seed: int, dtype: torch.dtype) -> None:
        from safetensors.torch import load_file, save_file

        case.save(folder, seed=seed, dtype=dtype)
        tensors = load_file(folder / "model.safetensors")
        last = f"model.layers.{case.config['num_hidden_layers'] - 1}."
        hidden = case.config["hidden_size"]
        shapes = {
            "mtp.fc.weight": (hidden, 2 * hidden),
            **dict.fromkeys(
                (
                    f"mtp.{n}.weight"
                    for n in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
                ),
                (hidden,),
            ),
            **{
                name.replace(last, "mtp.layers.0."): tensor.shape
                for name, tensor in tensors.items()
                if name.startswith(last)
            },
        }
        torch.manual_seed(seed + 1)
        for name, shape in shapes.items():
            tensors[name] = torch.empty(shape)
            randomize(name, tensors[name])
            tensors[name] = tensors[name].to(dtype)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return write


def predicting(family, config):
    """A case of a family that has a prediction layer."""
    case = Case(family, config)
    return Case(family, config, "mtp", write=with_prediction_layer(case), max_ep=2)


CASES: tuple[Case, ...] = (
    Case("mamba2", MAMBA2),
    Case(
        "mamba2",
        {
            **MAMBA2,
            "tie_word_embeddings": True,
            "use_bias": True,
            "use_conv_bias": False,
            "n_groups": 4,
            "conv_kernel": 4,
        },
        "tied",
        max_tp=4,
    ),
    Case("qwen3_next", {**GDN, **EXPERTS}, max_ep=2),
    Case(
        "qwen3_next",
        {
            **GDN,
            **EXPERTS,
            "norm_topk_prob": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "mlp_only_layers": [1, 3],
            "intermediate_size": 36,
            "layer_types": [
                *("full_attention", "linear_attention", "linear_attention", "full_attention"),
            ],
        },
        "mixed",
        max_ep=2,
    ),
    predicting("qwen3_next", {**GDN, **EXPERTS}),
    Case("qwen3_5_text", {**GDN, "intermediate_size": 36, "attention_bias": True}),
    predicting("qwen3_5_text", {**GDN, "intermediate_size": 36, "mtp_num_hidden_layers": 1}),
    Case("qwen3_5_moe_text", {**GDN, **EXPERTS, "attention_bias": True}, max_ep=2),
    predicting("qwen3_5_moe_text", {**GDN, **EXPERTS, "mtp_num_hidden_layers": 1}),
    Case("nemotron_h", NEMOTRON_H, max_ep=2),
    Case(
        "nemotron_h",
        {
            **NEMOTRON_H,
            "layers_block_type": ["full_attention", "linear_attention", "mlp", "full_attention"],
            "use_bias": True,
            "mlp_bias": True,
            "mlp_hidden_act": "silu",
        },
        "biases",
    ),
    Case(
        "nemotron_h",
        {**NEMOTRON_H, "n_group": 4, "topk_group": 2, "norm_topk_prob": False},
        "groups",
        max_ep=2,
    ),
    Case("bamba", BAMBA),
    Case(
        "bamba",
        {
            **BAMBA,
            "attn_layer_indices": [0, 3],
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_proj_bias": True,
            "tie_word_embeddings": True,
        },
        "biases",
    ),
)
