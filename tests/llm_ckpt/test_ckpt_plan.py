"""What a plan tells before anything is written, and when it refuses."""

import re
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from ckpt_models import read_tensors
from llm_ckpt.cli import main
from llm_ckpt.edge import space
from llm_ckpt.families import family_named
from llm_ckpt.plan import Target, make_plan


def llm_ckpt(*args, code=0):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


def test_files_sizes_memory_and_disk_are_told(hf_folder, tmp_path):
    args = (hf_folder("qwen3"), "--to", "mcore", "--tp", 2)
    text = llm_ckpt("convert", *args, "--output", tmp_path / "out", "--plan-only")
    assert re.search(r"mp_rank_01/model_optim_rng\.pt  41\d\.\d kB", text)
    assert re.search(r"2 files, 82\d\.\d kB on disk, at most about .* in memory a worker", text)
    assert re.search(rf"disk: 82\d\.\d kB needed, .*B free at {tmp_path}/out", text)
    assert list(tmp_path.iterdir()) == []
    assert "free" not in llm_ckpt("plan", *args)


def test_a_plan_that_does_not_fit_the_disk_exits_1(hf_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(space, "free_bytes", lambda _: 10)
    args = (hf_folder("qwen3"), "--output", tmp_path / "out", "--to", "mcore", "--plan-only")
    assert "needed, 10 (10 B) free" in llm_ckpt("convert", *args, code=1)


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_names_that_do_not_match_exit_1_and_are_listed(command, hf_folder, tmp_path):
    folder = shutil.copytree(hf_folder("qwen3"), tmp_path / "hf")
    tensors = read_tensors(folder)
    tensors["model.layers.1.mlp.up_projection.weight"] = tensors.pop(
        "model.layers.1.mlp.up_proj.weight"
    )
    save_file(tensors, folder / "model.safetensors")
    output = ("--output", tmp_path / "out") if command == "convert" else ()
    text = llm_ckpt(command, folder, "--to", "mcore", *output, code=1)
    assert "1 unknown tensors: model.layers.1.mlp.up_projection.weight; did you mean" in text
    assert "1 tensors are missing: model.layers.1.mlp.up_proj.weight" in text
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_misshapen_tensor_exits_1(hf_folder, tmp_path):
    folder = shutil.copytree(hf_folder("qwen3"), tmp_path / "hf")
    tensors = read_tensors(folder)
    tensors["model.norm.weight"] = torch.ones(65)
    save_file(tensors, folder / "model.safetensors")
    text = llm_ckpt("plan", folder, "--to", "mcore", code=1)
    assert "model.norm.weight has shape [65], want [64]" in text


def test_a_plan_of_any_size_costs_no_weights():
    """671B parameters: planned from shapes alone, one parameter a tensor, within a second or so."""
    config = {
        "model_type": "deepseek_v3",
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
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "max_position_embeddings": 163840,
        "rms_norm_eps": 1e-6,
    }
    family = family_named("deepseek_v3", where="t")
    table = family.table(family.read_config(config, where="t"))
    dtypes = dict.fromkeys(table.entries, torch.bfloat16)
    plan = make_plan(table, dtypes, Target(layout="v2"))
    # The published total with its prediction layer, 685B, less that layer's own embedding and head.
    assert plan.total_bytes / 2e9 == pytest.approx(685 - 2 * 129280 * 7168 / 1e9, rel=0.003)
    assert plan.peak_bytes == 2 * 129280 * 7168 * 2
