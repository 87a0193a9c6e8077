"""Checkpoints of adapters: resumed exactly, for one base alone, merged by llm-ckpt."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file

from ckpt_models import build_model
from ckpt_zoo import CASES
from fork_ranks import RankError, run_ranks
from llm_ckpt.cli import main as llm_ckpt
from llm_ckpt.errors import CheckpointError
from llm_ckpt.source import open_source
from llm_train.edge import checkpoint_files
from sft_data import make_chats, write_samples

LINEARS = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


def train(document, world_size=1):
    """The losses of a run by step."""

    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    lines = (Path(document["save"]["path"]) / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def document_of(load, data, save, **lora):
    return {
        "stage": "sft",
        "model": {"load": str(load)},
        "data": {"train": [str(data)]},
        "train": {"max_steps": 4, "seq_length": 48, "global_batch_size": 4},
        "optimizer": {"lr": 1e-2},
        "lora": {"rank": 4, "target_modules": LINEARS, **lora},
        "save": {"path": str(save), "every": 2},
        "device": "cpu",
    }


@pytest.fixture
def run(tmp_path):
    """A run of four steps with checkpoints at 2 and 4."""
    build_model("qwen3", num_hidden_layers=2).save_pretrained(tmp_path / "hf")
    data = write_samples(tmp_path / "data", make_chats(8))
    return document_of(tmp_path / "hf", data, tmp_path / "run")


def forget_the_last(root):
    checkpoint_files.iteration_folder(root, 4).rename(root / ".saving_0000004")
    shutil.rmtree(root / "adapter_0000004")


def weights(root, iteration):
    return load_file(checkpoint_files.adapter_folder(root, iteration) / "adapter_model.safetensors")


def test_a_resume_ends_with_the_same_adapter(run):
    root, whole = Path(run["save"]["path"]), train(run)
    wanted = weights(root, 4)
    assert "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight" in wanted
    forget_the_last(root)
    assert train(run) == whole
    again = weights(root, 4)
    assert wanted.keys() == again.keys()
    assert all(torch.equal(wanted[name], again[name]) for name in wanted)
    # Adapters, their masters and moments alone: the base is not saved again.
    saved = sum(path.stat().st_size for path in root.glob("iter_0000004/*.distcp"))
    base = (Path(run["model"]["load"]) / "model.safetensors").stat().st_size
    assert saved < base

    forget_the_last(root)
    run["parallel"] = {"tp": 2}
    assert train(run, world_size=2) == pytest.approx(whole, abs=1e-5)
    for name, tensor in weights(root, 4).items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-4, rtol=1e-4)


def test_what_a_checkpoint_is_not_for_is_refused(run, tmp_path):
    root = Path(run["save"]["path"])
    run["train"]["max_steps"] = 2
    train(run)
    run["train"]["max_steps"] = 4
    with pytest.raises(RankError, match=r"lora_A has shape \(4, 64\), this run wants \(8, 64\)"):
        train({**run, "lora": {**run["lora"], "rank": 8}})
    for changes, message in (
        ({"alpha": 8}, r"lora alpha / rank \(or √rank\) 8.0, this run has 2.0; want it as it was"),
        ({"rslora": True}, r"lora alpha / rank \(or √rank\) 8.0, this run has 16.0"),
        ({"quantize": "nf4"}, "lora quantize None, this run has nf4"),
    ):
        with pytest.raises(RankError, match=message):
            train({**run, "lora": {**run["lora"], **changes}})
    assert not (root / "iter_0000004").exists()
    with pytest.raises(RankError, match="holds adapters alone, this run trains the whole model"):
        train({**run, "lora": None})
    build_model("qwen3", num_hidden_layers=2, seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(RankError, match=r"adapters are for a base with digest \w{12}…, model.load"):
        train({**run, "model": {"load": str(tmp_path / "other")}})
    description = json.loads((root / "iter_0000002" / "checkpoint.json").read_text())
    assert description["contains"] == ["adapter", "optimizer"]
    with pytest.raises(CheckpointError, match="contains adapter, optimizer, want weights; merge"):
        open_source(root)


def test_targets_that_match_nothing_are_named_with_what_there_is(run):
    run["lora"]["target_modules"] = ["linear_qkv", "q_proj"]
    with pytest.raises(
        RankError,
        match=r"'q_proj' matches none of the model's \d+ linears; there are linear_fc1, "
        r"linear_fc2, linear_proj, linear_qkv, output_layer, word_embeddings",
    ):
        train(run)


@pytest.mark.parametrize(
    ("family", "lora", "parallel"),
    [
        ("qwen3", {}, {}),
        ("qwen3_moe", {}, {}),
        ("qwen3", {"quantize": "nf4"}, {}),
        ("qwen3", {"quantize": "nf4"}, {"tp": 2}),
        ("qwen3", {"quantize": "nf4"}, {"fsdp": True}),
        ("qwen3_moe", {"quantize": "nf4", "double_quantize": True}, {"tp": 2, "etp": 2}),
    ],
    ids=["qwen3", "qwen3_moe", "nf4", "nf4-tp2", "nf4-fsdp", "nf4-etp2"],
)
def test_a_merged_model_has_the_logits_of_the_run(family, lora, parallel, tmp_path):
    """Experts too, whose adapters peft itself has no modules for; by the run and by llm-ckpt.

    The run restores what it has in NF4, each rank with scales of its own part, which llm-ckpt, that
    merges into the base, knows nothing of.
    """
    case = next(case for case in CASES if case.family == family and case.write is None)
    base = case.save(tmp_path / "hf")
    data = write_samples(tmp_path / "data", make_chats(8))
    run = document_of(base, data, tmp_path / "run", **lora)
    run["train"] |= {"max_steps": 2}
    run["save"]["hf"] = True
    run["parallel"] = parallel
    ids = torch.tensor([make_chats(1)[0][0]])

    def rank(_rank):
        from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

        from llm_train.config_parse import parse
        from llm_train.edge import run as edge_run
        from llm_train.train import loop

        found = {}
        go = loop.Loop.go

        def then_look(self):
            go(self)
            (chunk,) = self.training.chunks
            with torch.no_grad():
                logits = chunk.eval()(ids, torch.arange(ids.shape[1])[None], None)
                found["logits"] = gather_from_tensor_model_parallel_region(logits)

        loop.Loop.go = then_look
        edge_run.run(parse(run, [], "test"))
        return found["logits"]

    ours, *_ = run_ranks(rank, 2 if parallel else 1)
    adapter = checkpoint_files.adapter_folder(tmp_path / "run", 2)
    words = ["merge-lora", str(base), str(adapter), "--output", str(tmp_path / "merged")]
    merged = CliRunner().invoke(llm_ckpt, words)
    assert merged.exit_code == 0, merged.output
    found = {}
    for folder in (checkpoint_files.hf_folder(tmp_path / "run", 2), tmp_path / "merged", base):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            found[folder.name] = model(ids).logits
    torch.testing.assert_close(found.pop("hf_0000002"), ours, atol=1e-5, rtol=1e-4)
    if not lora:
        torch.testing.assert_close(found.pop("merged"), ours, atol=1e-5, rtol=1e-4)
    for name, logits in found.items():
        assert (logits - ours).abs().max() > 1e-3, name
