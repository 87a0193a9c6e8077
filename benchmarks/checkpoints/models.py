"""Synthetic Hugging Face folders of any size: real headers, random or absent tensor bytes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from llm_ckpt.edge.folder import arch_from_file
from llm_ckpt.families import family_named
from llm_ckpt.formats.hf import CONFIG, INDEX, header_bytes, index_bytes
from llm_ckpt.plan import HfFile, Plan, Target, make_plan

DTYPE = torch.bfloat16
SHARD_BYTES = 1 << 30
_NOISE_BYTES = (64 << 20) + 4099  # an odd length: no two tensors are alike

DENSE: Mapping[str, object] = {
    "model_type": "llama",
    "vocab_size": 32768,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}
_MLA: Mapping[str, object] = {
    "model_type": "deepseek_v3",
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "ep_size": 1,
    "pretraining_tp": 1,
    "dtype": "bfloat16",
}
MOE: Mapping[str, object] = {
    **_MLA,
    "vocab_size": 32768,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "moe_intermediate_size": 1408,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "num_nextn_predict_layers": 0,
}
# DeepSeek-V3's own sizes (its config.json), in bf16.
DEEPSEEK_V3: Mapping[str, object] = {
    **_MLA,
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
    "num_nextn_predict_layers": 1,
}


def sized(config: Mapping[str, object], gigabytes: float, folder: Path) -> Path:
    """A folder of about that many GB: as many layers as it takes."""
    small, large = (_planned(config, layers, folder).total_bytes for layers in (2, 3))
    layers = max(2, 2 + round((gigabytes * 1e9 - small) / (large - small)))
    return write(_planned(config, layers, folder), folder, is_sparse=False)


def sparse(config: Mapping[str, object], folder: Path) -> Path:
    """A folder whose tensors are holes: all zero, and no bytes on disk."""
    layers = config["num_hidden_layers"]
    assert isinstance(layers, int)
    return write(_planned(config, layers, folder, 5 * 10**9), folder, is_sparse=True)


def write(plan: Plan, folder: Path, *, is_sparse: bool) -> Path:
    """The planned files with their headers and, if not sparse, noise."""
    noise = memoryview(os.urandom(_NOISE_BYTES))
    files = [file for file in plan.files if isinstance(file, HfFile)]
    for file in files:
        header = header_bytes([(t.name, t.dtype, t.shape) for t in file.tensors])
        with (folder / file.path).open("wb") as out:
            out.write(header)
            if is_sparse:
                out.truncate(len(header) + file.nbytes)
            else:
                for left in range(file.nbytes, 0, -_NOISE_BYTES):
                    out.write(noise[: min(left, _NOISE_BYTES)])
    if len(files) > 1:
        names = {t.name: f.path for f in files for t in f.tensors}
        (folder / INDEX).write_bytes(index_bytes(names, plan.total_bytes))
    return folder


def _planned(
    config: Mapping[str, object], layers: int, folder: Path, shard_bytes: int = SHARD_BYTES
) -> Plan:
    """The plan of a Hugging Face folder; its config.json is written, since files are read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({**config, "num_hidden_layers": layers}, indent=1))
    arch = arch_from_file(folder / CONFIG)
    table = family_named(arch.family, where=str(folder)).table(arch)
    dtypes = dict.fromkeys(table.entries, DTYPE)
    return make_plan(table, dtypes, Target(layout="hf", max_shard_bytes=shard_bytes))
