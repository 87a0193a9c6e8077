"""Opening a folder of tens of thousands of tensors: headers and table, no weights."""

import json
import time
from math import prod

import pytest
import torch

from llm_ckpt.families import family_named
from llm_ckpt.formats.hf import CONFIG, INDEX, header_bytes, index_bytes, shard_name
from llm_ckpt.source import open_source

# Of processor time: 0.6 to 1.0 alone, 2.1 seen beside other work. What would take a pass over all
# tensors for each tensor takes minutes.
SECONDS = 10.0
MODELS = {
    "Qwen3-235B-A22B": {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536,
        "norm_topk_prob": True,
    },
    "GLM-4.5": {
        "model_type": "glm4_moe",
        "vocab_size": 151552,
        "hidden_size": 5120,
        "intermediate_size": 12288,
        "num_hidden_layers": 92,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "n_routed_experts": 160,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536,
        "first_k_dense_replace": 3,
        "attention_bias": True,
        "use_qk_norm": True,
    },
}
SHARDS = 93


def write_sparse(folder, table):
    """The folder's files with headers and holes."""
    parts, weight_map, total = list(table.hf_parts()), {}, 0
    for index in range(SHARDS):
        name, chosen = shard_name(index, SHARDS), parts[index::SHARDS]
        header = header_bytes([(part.name, torch.bfloat16, part.stored_shape) for part in chosen])
        size = sum(2 * prod(part.stored_shape) for part in chosen)
        with (folder / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + size)
        weight_map |= {part.name: name for part in chosen}
        total += size
    (folder / INDEX).write_bytes(index_bytes(weight_map, total))
    return len(parts), total


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_hundreds_of_billions_opens_in_seconds(name, tmp_path):
    config = MODELS[name]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    family = family_named(config["model_type"], where=name)
    count, total = write_sparse(tmp_path, family.table(family.read_config(config, where=name)))
    assert count > 36000
    assert total > 400e9
    before = time.process_time()
    with open_source(tmp_path) as source:
        seconds = time.process_time() - before
        assert len(source.names()) > 24000
    assert seconds < SECONDS
