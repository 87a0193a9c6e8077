"""Tiny models with multi-head latent attention."""

import json
import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

from ckpt_zoo.case import Case

VOCAB = 250
ATTENTION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 28,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "max_position_embeddings": 64,
    "vocab_size": VOCAB,
}
EXPERTS = {
    **ATTENTION,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
}
GROUPS = {"n_group": 4, "topk_group": 2}
V3 = {**EXPERTS, **GROUPS, "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-3}
SPARSE = {"index_n_heads": 16, "index_head_dim": 12, "index_topk": 7}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    # With these the band between both betas lies inside the rotary part.
    "original_max_position_embeddings": 2048,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.8,
    "mscale_all_dim": 0.6,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.9],
    "long_factor": [1.2, 1.7, 2.9, 5.3],
    "original_max_position_embeddings": 16,
}

LONGCAT = {
    **{key: ATTENTION[key] for key in ATTENTION if key not in ("intermediate_size",)},
    "ffn_hidden_size": 96,
    "expert_ffn_hidden_size": 24,
    "num_layers": 2,
    "head_dim": 8,
    "moe_topk": 4,
    "n_routed_experts": 6,
    "zero_expert_num": 3,
    "routed_scaling_factor": 1.7,
    "attention_bias": True,
}
del LONGCAT["num_hidden_layers"]


def write_longcat(folder, seed, dtype):
    """Transformers also stores weights of zero experts, which no published folder has."""
    Case("longcat_flash", LONGCAT).build(seed=seed, dtype=dtype).save_pretrained(folder)
    path = folder / "model.safetensors"
    stored = load_file(path)
    kept = {name: tensor for name, tensor in stored.items() if not is_zero_expert(name)}
    save_file(kept, path, metadata={"format": "pt"})


def longcat_logits(folder, tokens):
    """Transformers' logits, with weights of zero experts that it never looks at."""
    stored = load_file(folder / "model.safetensors")
    for name in [name for name in stored if ".experts.0." in name and "down_proj" not in name]:
        for number in range(LONGCAT["n_routed_experts"], 9):
            stored[name.replace(".experts.0.", f".experts.{number}.")] = stored[name].clone()
    with TemporaryDirectory() as name:
        copy = Path(name)
        shutil.copy(folder / "config.json", copy)
        save_file(stored, copy / "model.safetensors", metadata={"format": "pt"})
        return Case("longcat_flash").expected_logits(copy, tokens)


def is_zero_expert(name):
    """Whether a tensor belongs to an expert that returns its input."""
    number = name.partition(".experts.")[2].partition(".")[0]
    return number.isdigit() and int(number) >= LONGCAT["n_routed_experts"]


def write_kimi(folder, seed, dtype, **changed):
    """Kimi-K2 is DeepSeek-V3 under another model_type, which transformers does not know."""
    config = {**V3, "n_group": 1, "topk_group": 1, "attention_bias": True, **changed}
    Case("deepseek_v3", config).save(folder, seed=seed, dtype=dtype)
    set_model_type(folder, "kimi_k2")


def kimi_logits(folder, tokens):
    """The logits of the same folder as DeepSeek-V3's."""
    with TemporaryDirectory() as name:
        copy = Path(name) / "hf"
        shutil.copytree(folder, copy)
        set_model_type(copy, "deepseek_v3")
        return Case("deepseek_v3").expected_logits(copy, tokens)


def set_model_type(folder, name):
    """Change one key of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": name}))


def write_prediction(folder, seed, dtype, *, family, count, **config):
    """Prediction layers by hand, for transformers has none: each as the last layer, new numbers.

    Published folders hold the embedding and the head once more under each.
    """
    config = {**V3, "num_nextn_predict_layers": count, **config}
    Case(family, config).build(seed=seed, dtype=dtype).save_pretrained(folder)
    path, layers, hidden = folder / "model.safetensors", V3["num_hidden_layers"], V3["hidden_size"]
    stored = load_file(path)
    last = f"model.layers.{layers - 1}."
    shapes = {n.removeprefix(last): t.shape for n, t in stored.items() if n.startswith(last)}
    shapes |= dict.fromkeys(("enorm.weight", "hnorm.weight", "shared_head.norm.weight"), (hidden,))
    shapes["eh_proj.weight"] = (hidden, 2 * hidden)
    random = torch.Generator().manual_seed(seed + 1)
    for number in range(layers, layers + count):
        at = f"model.layers.{number}."
        for name, shape in shapes.items():
            stored[at + name] = torch.randn(shape, generator=random).to(dtype)
        stored[at + "embed_tokens.weight"] = stored["model.embed_tokens.weight"].clone()
        stored[at + "shared_head.head.weight"] = stored["lm_head.weight"].clone()
    save_file(stored, path, metadata={"format": "pt"})


CASES: tuple[Case, ...] = (
    Case("youtu", ATTENTION),
    Case("youtu", {**ATTENTION, "attention_bias": True, "rope_interleave": False}, "biases"),
    Case("youtu", {**ATTENTION, "q_lora_rank": None, "tie_word_embeddings": False}, "no-q-lora"),
    Case(
        "minicpm3",
        {
            **ATTENTION,
            "hidden_size": 48,
            "v_head_dim": 12,
            "rope_parameters": LONG,
            "scale_emb": 3,
            "scale_depth": 1.4,
            "dim_model_base": 32,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    Case("minicpm3", {**ATTENTION, "q_lora_rank": None, "tie_word_embeddings": False}, "untied"),
    Case("deepseek_v2", {**EXPERTS, "q_lora_rank": None, "topk_method": "greedy"}, "lite"),
    Case(
        "deepseek_v2",
        {
            **EXPERTS,
            **GROUPS,
            "topk_method": "group_limited_greedy",
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
            "attention_bias": True,
        },
        "groups",
    ),
    Case("deepseek_v3", {**V3, "rope_parameters": YARN, "attention_bias": True}),
    Case("deepseek_v3", {**V3, "q_lora_rank": None, "norm_topk_prob": False}, "no-q-lora"),
    Case("deepseek_v32", {**V3, **SPARSE, "rope_parameters": YARN, "attention_bias": True}),
    Case("glm_moe_dsa", {**V3, **SPARSE, "n_group": 1, "topk_group": 1, "attention_bias": True}),
    Case(
        "glm_moe_dsa",
        {
            **V3,
            **SPARSE,
            "indexer_types": ["full", "shared", "full", "shared"],
            "first_k_dense_replace": 0,
        },
        "borrowing",
    ),
    Case("glm4_moe_lite", {**V3, "n_group": 1, "topk_group": 1, "attention_bias": True}),
    Case("glm4_moe_lite", {**V3, "q_lora_rank": None}, "no-q-lora"),
    Case("kimi_k2", write=write_kimi, logits=kimi_logits),
    Case(
        "kimi_k2",
        name="no-q-lora",
        write=partial(write_kimi, q_lora_rank=None),
        logits=kimi_logits,
    ),
    *(
        Case(
            family,
            name="prediction",
            write=partial(write_prediction, family=family, count=count, **config),
        )
        for family, count, config in (
            ("deepseek_v3", 1, {}),
            ("deepseek_v32", 2, SPARSE),
            ("glm_moe_dsa", 1, SPARSE),
            ("glm4_moe_lite", 1, {"attention_bias": True}),
        )
    ),
    Case("longcat_flash", write=write_longcat, logits=longcat_logits),
)
