"""A run that stops goes on exactly, at any layout, and never from damaged files."""

import json
from pathlib import Path

import pytest

from fork_ranks import RankError, run_ranks
from llm_train.edge import checkpoint_files


def train(document, world_size=1):
    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, world_size)
    return losses(Path(document["save"]["path"]))


@pytest.fixture
def run_document(run_document):
    """One micro-batch a step: how many there are is nothing to a checkpoint."""
    run_document["train"]["micro_batch_size"] = 8
    return run_document


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


@pytest.fixture
def stopped(run_document):
    """A run of 10 steps with checkpoints at 5 and 10, as if stopped after step 7."""
    run_document["save"]["every"] = 5
    whole = train(run_document)
    root = Path(run_document["save"]["path"])
    newest = checkpoint_files.iteration_folder(root, 10)
    newest.rename(root / ".saving_0000010")  # a save that did not finish
    return run_document, whole


def test_resumed_losses_are_bit_equal(stopped):
    """Without a step counter a parameter (megatron-core shares one) the curve leaves at once."""
    document, whole = stopped
    assert train(document) == whole
    assert list(whole) == list(range(1, 11))


def test_run_resumes_at_another_layout(stopped):
    document, whole = stopped
    document["parallel"] = {"tp": 2}
    resumed = train(document, world_size=2)
    assert resumed == pytest.approx(whole, abs=1e-5)


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", ["flipped byte", "cut short", "missing", "index"])
def test_damaged_checkpoint_is_passed_over_and_said(run_document, damage, capfd):
    run_document["save"]["every"] = 5
    whole = train(run_document)
    folder = checkpoint_files.iteration_folder(Path(run_document["save"]["path"]), 10)
    victim = max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    if damage == "index":
        victim = folder / ".metadata"
    if damage in ("index", "flipped byte"):
        flip_a_byte(victim)
    elif damage == "cut short":
        victim.write_bytes(victim.read_bytes()[:-100])
    else:
        victim.unlink()
    problem = checkpoint_files.damage(
        folder, victim.name, checkpoint_files.read_description(folder).files[victim.name]
    )
    assert problem is not None
    assert str(victim) in problem
    assert "want" in problem or "lists it" in problem
    assert train(run_document) == whole  # steps 6 to 10 were done again, from 5


def test_resume_require_without_a_checkpoint_is_an_error(run_document):
    run_document["save"]["resume"] = "require"
    with pytest.raises(RankError, match="no whole checkpoint to resume from"):
        train(run_document)


def test_another_architecture_is_refused(run_document, moe_arch):
    run_document["train"]["max_steps"] = 3
    train(run_document)
    run_document["model"]["arch"] = str(moe_arch)
    with pytest.raises(RankError, match="is of another architecture"):
        train(run_document)


def write_manifest(prefix, *, tokenizer_digest):
    """What of a dataset's manifest names its tokenizer, and the sizes that are checked."""
    items = Path(f"{prefix}.bin").stat().st_size // 2  # uint16
    manifest = {"format": "token-dataset", "version": 1, "num_tokens": items}
    manifest["tokenizer"] = {"digest": tokenizer_digest}
    Path(f"{prefix}.json").write_text(json.dumps(manifest))


def test_data_of_another_tokenizer_than_the_checkpoints_is_refused(run_document, tmp_path):
    """The model was made at random: no folder of it names a tokenizer, only its data did."""
    import shutil

    first = Path(run_document["data"]["train"][0])
    prefixes = {name: tmp_path / name for name in ("one", "other")}
    for name, prefix in prefixes.items():
        shutil.copy(f"{first}.bin", f"{prefix}.bin")
        shutil.copy(f"{first}.idx", f"{prefix}.idx")
        write_manifest(prefix, tokenizer_digest=("a" if name == "one" else "b") * 64)
    run_document["train"]["max_steps"] = 2
    run_document["optimizer"]["warmup_steps"] = 1
    run_document["data"]["train"] = [str(prefixes["one"])]
    train(run_document)
    run_document["train"]["max_steps"] = 3
    run_document["data"]["train"] = [str(prefixes["other"])]
    words = (
        "iteration 2 was trained with tokenizer aaaaaaaaaaaa…, this run's data are of bbbbbbbbbbbb"
    )
    with pytest.raises(RankError, match=words):
        train(run_document)
    run_document["data"]["allow_tokenizer_mismatch"] = True
    assert list(train(run_document)) == [1, 2, 3]


def test_only_the_newest_checkpoints_are_kept(run_document):
    run_document["save"] |= {"every": 2, "keep": 2}
    train(run_document)
    root = Path(run_document["save"]["path"])
    assert checkpoint_files.finished_iterations(root) == [8, 10]
    assert (root / checkpoint_files.TRACKER).read_text() == "10\n"


def test_expert_moments_survive_a_change_of_expert_parallel(run_document, moe_arch):
    """megatron-core has one optimizer without expert parallel and two with it."""
    run_document["model"]["arch"] = str(moe_arch)
    run_document["save"]["every"] = 5
    whole = train(run_document)
    root = Path(run_document["save"]["path"])
    checkpoint_files.iteration_folder(root, 10).rename(root / ".saving_0000010")
    run_document["parallel"] = {"ep": 2}
    run_document["train"]["micro_batch_size"] = 4
    assert train(run_document, world_size=2) == pytest.approx(whole, abs=1e-5)


def test_a_run_with_only_damaged_checkpoints_is_not_started_anew(run_document):
    run_document["train"]["max_steps"] = 3
    train(run_document)
    folder = checkpoint_files.iteration_folder(Path(run_document["save"]["path"]), 3)
    (folder / checkpoint_files.DESCRIPTION).write_text("{")
    with pytest.raises(RankError, match=r"none of its 1 checkpoints is whole .*not JSON"):
        train(run_document)


def test_moments_survive_in_buckets_whose_ends_are_padded(run_document, tmp_path):
    """A tied embedding of 251 · 64 elements is a bucket of its own, filled up to 16128.

    megatron-core gathers the moments without that filling and reads them as if it were there, so
    those of every later parameter would be kept shifted by 64.
    """
    arch = json.loads(Path(run_document["model"]["arch"]).read_text())
    (tmp_path / "tied.json").write_text(
        json.dumps(arch | {"tie_embeddings": True, "vocab_size": 251})
    )
    run_document["model"]["arch"] = str(tmp_path / "tied.json")
    run_document["save"]["every"] = 5
    run_document["parallel"] = {"pp": 2}
    whole = train(run_document, world_size=2)
    root = Path(run_document["save"]["path"])
    checkpoint_files.iteration_folder(root, 10).rename(root / ".saving_0000010")
    assert train(run_document, world_size=2) == whole


def test_checkpoints_are_also_written_as_hugging_face_folders(run_document, tmp_path):
    """The weights of each are those of the checkpoint; transformers trains on from them."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path / "hf")
    run_document["model"] = {"load": str(tmp_path / "hf")}
    run_document["save"] |= {"every": 4, "keep": 2, "hf": True}
    run_document["parallel"] = {"tp": 2}
    train(run_document, world_size=2)
    root = Path(run_document["save"]["path"])
    assert sorted(path.name for path in root.glob("hf_*")) == ["hf_0000008", "hf_0000010"]
    from llm_ckpt.source import open_source

    with open_source(root, iteration=8) as saved, open_source(root / "hf_0000008") as written:
        assert saved.names() == written.names()
        assert all(torch.equal(saved.read(name), written.read(name)) for name in saved.names())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(root / "hf_0000010")
    first = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert not torch.equal(loaded.lm_head.weight, first.lm_head.weight)


def test_a_failed_export_does_not_end_the_training(run_document, monkeypatch, capfd):
    """The checkpoint is whole; only the folder beside it is missing, and that is said."""
    run_document["save"] |= {"hf": True}
    folder = Path(run_document["save"]["path"]) / "hf_0000010"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("not llm-ckpt's")
    assert len(train(run_document)) == 10
    assert f"{folder}: not written, the checkpoint of step 10 is" in capfd.readouterr().err
    assert (folder / "mine.txt").exists()
