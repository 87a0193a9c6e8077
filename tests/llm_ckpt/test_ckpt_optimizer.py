"""Optimizer state in v2 goes through conversions, and llm-train takes it up again."""

import io
import json
import pickle
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

import ckpt_megatron_optimizer as megatron
from ckpt_zoo import CASES
from fork_ranks import run_ranks
from llm_ckpt.errors import CheckpointError
from llm_ckpt.formats.dist_metadata import read_metadata
from llm_ckpt.formats.optimizer_state import is_trained, split_state, state_name
from llm_ckpt.source import open_source

PADDED = 256
BY_ID = {case.id: case for case in CASES}
# megatron-core has no biases of MLA's projections
BY_ID["latent"] = replace(
    BY_ID["deepseek_v3"], config={**BY_ID["deepseek_v3"].config, "attention_bias": False}
)


@pytest.fixture(scope="session")
def hf_case(tmp_path_factory):
    """The Hugging Face folder of a case of the zoo."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = BY_ID[name].save(tmp_path_factory.mktemp(name) / "hf")
        return made[name]

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory, golden_text):
    """A run of llm-train at tp 2, stopped after 2 of its 4 steps, and its configuration."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    root = tmp_path_factory.mktemp("trained")
    builder = IndexedDatasetBuilder(f"{root}/toy.bin", dtype=np.uint16)
    generator = np.random.RandomState(0)
    for _ in range(60):
        length = generator.randint(20, 200)
        tokens = np.cumsum(generator.randint(0, 3, length)) % 250
        builder.add_document(torch.from_numpy(tokens.astype(np.uint16)), [length])
    builder.finalize(f"{root}/toy.idx")
    arch = json.loads(golden_text("qwen3_tiny")) | {"vocab_size": 250}
    (root / "model.json").write_text(json.dumps(arch))
    document = {
        "model": {"arch": str(root / "model.json"), "init_std": 0.1},
        "data": {"train": [f"{root}/toy"]},
        "train": {
            "max_steps": 2,
            "seq_length": 32,
            "global_batch_size": 4,
            "micro_batch_size": 2,
        },
        "optimizer": {"lr": 1e-2, "warmup_steps": 1, "decay_steps": 4},
        "save": {"path": str(root / "run")},
        "parallel": {"tp": 2},
        "device": "cpu",
    }
    train(document)
    return root / "run", document


def train(document):
    def rank(_rank):
        from llm_train.config_parse import parse
        from llm_train.edge.run import run

        run(parse(document, [], "test"))

    run_ranks(rank, 2)


def resumed_losses(folder, document):
    """Losses of steps 3 and 4 of a run that goes on from a checkpoint."""
    train(document | {"train": document["train"] | {"max_steps": 4}, "save": {"path": str(folder)}})
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {r["step"]: r["loss"] for r in records if "loss" in r and r["step"] > 2}


def all_tensors(root):
    with open_source(root) as source:
        names = source.names() + source.optimizer.names()
        return {name: source.read(name) for name in names}


def common_of(root):
    return torch.load(root / "iter_0000002/common.pt", weights_only=False)


def keys_of(root):
    from torch.distributed.checkpoint import FileSystemReader

    return set(FileSystemReader(str(root / "iter_0000002")).read_metadata().state_dict_metadata)


def test_v2_state_goes_to_stacked_keys_and_back_and_training_resumes_bit_equal(
    trained, convert, tmp_path
):
    saved, document = trained
    convert(saved, tmp_path / "stacked", "v2")
    convert(tmp_path / "stacked", tmp_path / "back", "v2", is_per_layer=True)
    wanted = all_tensors(saved)
    assert {split_state(name)[0] for name in wanted} == {"", "param", "exp_avg", "exp_avg_sq"}
    assert any(tensor.abs().max() > 0 for name, tensor in wanted.items() if "exp_avg_sq" in name)
    for root in (tmp_path / "stacked", tmp_path / "back"):
        found = all_tensors(root)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert common_of(root)["optimizer"] == common_of(saved)["optimizer"]
        description = json.loads((root / "iter_0000002/checkpoint.json").read_text())
        assert description["contains"] == ["weights", "optimizer"]
        assert (description["iteration"], description["consumed_samples"]) == (2, 8)
        assert common_of(root)["args"].consumed_train_samples == 8
    assert "optimizer.state.exp_avg.decoder.layers.mlp.linear_fc2.weight" in keys_of(
        tmp_path / "stacked"
    )
    states = {key for key in keys_of(saved) if "_extra_state" not in key}
    assert {key for key in keys_of(tmp_path / "back") if "_extra_state" not in key} == states
    shutil.copytree(saved, tmp_path / "unconverted")
    unconverted = resumed_losses(tmp_path / "unconverted", document)
    assert list(unconverted) == [3, 4]
    assert resumed_losses(tmp_path / "back", document) == unconverted


def test_v2_state_goes_to_v1_and_back(trained, convert, tmp_path):
    saved, _ = trained
    convert(saved, tmp_path / "v1", "v1", tp=2, pp=2, workers=2)
    convert(tmp_path / "v1", tmp_path / "v2", "v2", is_per_layer=True)
    wanted, found = all_tensors(saved), all_tensors(tmp_path / "v2")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert common_of(tmp_path / "v2")["optimizer"] == common_of(saved)["optimizer"]


def test_state_keeps_its_dtype_when_weights_are_cast(trained, convert, tmp_path):
    saved, _ = trained
    convert(saved, tmp_path / "half", "v2", dtype=torch.bfloat16)
    wanted, found = all_tensors(saved), all_tensors(tmp_path / "half")
    for name, tensor in wanted.items():
        dtype = tensor.dtype if split_state(name)[0] else torch.bfloat16
        assert torch.equal(found[name], tensor.to(dtype)), name


@pytest.mark.parametrize("layout", ["hf", "v2"])
def test_state_that_is_left_out_is_said(layout, trained, convert, tmp_path):
    saved, _ = trained
    outcome = convert(saved, tmp_path / "out", layout, keeps_optimizer=False)
    assert f"{saved}/iter_0000002: the optimizer's state is left out" in outcome.notes
    if layout == "v2":
        assert not any(key.startswith("optimizer.") for key in keys_of(tmp_path / "out"))
        assert "optimizer" not in common_of(tmp_path / "out")


def test_other_sharding_types_are_refused_by_name(golden_arch, convert, tmp_path):
    arch = megatron.tiny(golden_arch)
    folder = tmp_path / "saved/iter_0000007"
    folder.mkdir(parents=True)

    def rank(_rank):
        from megatron.core import dist_checkpointing, parallel_state

        (chunk,), optimizer = megatron.build(arch, vocab=PADDED)
        megatron.fill(arch, [chunk], optimizer, vocab=PADDED)
        kind = {
            "distrib_optim_sharding_type": "dp_reshardable",
            "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        }
        model = chunk.sharded_state_dict(metadata=kind)
        state = {"optimizer": optimizer.sharded_state_dict(dict(model), metadata=kind)}
        content = {"distrib_optim_sharding_type": "dp_reshardable"}
        state |= {"model": chunk.sharded_state_dict(metadata=kind)}
        dist_checkpointing.save(state, str(folder), content_metadata=content)

    run_ranks(rank, 1)
    megatron.finish(tmp_path / "saved", arch)
    with pytest.raises(CheckpointError, match=r"sharding type is dp_reshardable.*--no-optimizer"):
        convert(tmp_path / "saved", tmp_path / "v2", "v2")
    convert(tmp_path / "saved", tmp_path / "hf", "hf")
    convert(tmp_path / "saved", tmp_path / "v2", "v2", keeps_optimizer=False)


def test_random_states_go_along_and_what_cannot_be_rewritten_is_refused(trained, convert, tmp_path):
    saved, _ = trained
    root = shutil.copytree(saved, tmp_path / "saved")
    add_object(root / "iter_0000002", "rng_state/shard_0.0_1.1", [[{"python": random.getstate()}]])
    convert(root, tmp_path / "v2", "v2")
    span = read_metadata(tmp_path / "v2/iter_0000002").objects["rng_state/shard_0.0_1.1"]
    data = (tmp_path / "v2/iter_0000002" / span[0]).read_bytes()[span[1] : span[1] + span[2]]
    assert torch.load(io.BytesIO(data)) == [[{"python": random.getstate()}]]
    description = json.loads((tmp_path / "v2/iter_0000002/checkpoint.json").read_text())
    assert description["contains"] == ["weights", "optimizer", "rng"]

    def spoil(value):
        value["scheduler"] = {"state": Path("x")}

    megatron.edit_torch_file(root / "iter_0000002/common.pt", spoil)
    with pytest.raises(CheckpointError, match=r"\['scheduler'\]\['state'\] is an object"):
        convert(root, tmp_path / "other", "v2")


def add_object(folder, key, value):
    """As megatron-core keeps an object that is no tensor: a torch.save file named in .metadata."""
    torch.save(value, folder / "rng.distcp")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.state_dict_metadata[key] = BytesStorageMetadata()
    size = (folder / "rng.distcp").stat().st_size
    metadata.storage_data[MetadataIndex(key)] = _StorageInfo("rng.distcp", 0, size)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    "name", ["latent", "deepseek_v3-prediction", "qwen3_next", "nemotron_h", "gpt_oss", "mixtral"]
)
def test_state_of_every_kind_of_layer_has_the_keys_of_its_parameters(
    name, hf_case, convert, tmp_path
):
    """Weights stand for moments: the same chunks, under the moments' keys too."""
    convert(hf_case(name), tmp_path / "v2", "v2")
    folder = tmp_path / "v2/iter_0000001"
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    weights = dict(metadata.state_dict_metadata)
    for key, entry in weights.items():
        if "_extra_state" in key or key.endswith("expert_bias"):
            continue
        metadata.state_dict_metadata[f"optimizer.state.exp_avg.{key}"] = entry
        for chunk in entry.chunks:
            info = metadata.storage_data[MetadataIndex(key, chunk.offsets)]
            index = MetadataIndex(f"optimizer.state.exp_avg.{key}", chunk.offsets)
            metadata.storage_data[index] = info
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    for is_per_layer in (True, False):
        target = tmp_path / f"to {is_per_layer}"
        convert(tmp_path / "v2", target, "v2", is_per_layer=is_per_layer)
        keys = set(read_metadata(target / "iter_0000001").tensors)
        states = {key.removeprefix("optimizer.state.exp_avg.") for key in keys} - {
            key for key in keys if key.startswith("optimizer.")
        }
        assert states == {key for key in keys if not key.startswith("optimizer.")}
        with open_source(target) as source:
            trained = [name for name in source.names() if is_trained(name)]
            assert source.optimizer.names() == [state_name("exp_avg", name) for name in trained]
            for name in trained:
                state = source.read(state_name("exp_avg", name))
                assert torch.equal(state, source.read(name)), name
