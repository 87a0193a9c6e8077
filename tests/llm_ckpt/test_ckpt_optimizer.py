"""Optimizer state goes through conversions, and megatron-core and llm-train take it up again."""

import io
import json
import pickle
import random
import shutil
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

import ckpt_megatron_optimizer as megatron
from ckpt_megatron import build_chunks
from fork_ranks import run_ranks
from llm_ckpt.arch import parse_arch_text
from llm_ckpt.errors import CheckpointError, LayoutError
from llm_ckpt.formats.dist_metadata import read_metadata
from llm_ckpt.formats.optimizer_state import split_state
from llm_ckpt.formats.param_buffer import BufferParam, in_registered_order, place
from llm_ckpt.formats.rank_files import rank_path
from llm_ckpt.params import expected_params
from llm_ckpt.source import open_source

PADDED = 256


# Buffers


def test_parameters_lie_where_megatron_core_puts_them():
    random.seed(1)
    draws = [
        (
            [(random.choice((1, 32, 63, 64, 200, 640)), random.random() < 0.2) for _ in range(n)],
            random.choice((None, None, 100, 700)),
        )
        for n in [1, 2, *(random.randint(3, 12) for _ in range(60))]
    ]

    def rank(_rank):
        return [_places_of_megatron(params, bucket) for params, bucket in draws]

    for world_size in (1, 3):
        for found in run_ranks(rank, world_size):
            for (params, bucket), (starts, numel) in zip(draws, found, strict=True):
                placed = place([BufferParam(*one) for one in params], bucket_numel=bucket)
                assert (list(placed.starts), placed.numel) == (starts, numel)


def _places_of_megatron(params, bucket):
    """Of its buffer: where each parameter begins once the padding after buckets is dropped."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBuffer
    from megatron.core.process_groups_config import ProcessGroupCollection

    from llm_train.edge.patches import Patches, patch_cpu, patch_gaps

    if not dist.is_initialized():
        patches = Patches()
        patch_cpu(patches)
        patch_gaps(patches)
        dist.init_process_group("gloo")
        parallel_state.initialize_model_parallel()
    group = parallel_state.get_data_parallel_group()
    groups = ProcessGroupCollection()
    groups.tp, groups.dp_cp = parallel_state.get_tensor_model_parallel_group(), group
    tensors = [torch.nn.Parameter(torch.zeros(numel)) for numel, _ in params]
    for tensor, (_, is_shared) in zip(tensors, params, strict=True):
        tensor.shared_embedding = is_shared
    buffer = _ParamAndGradBuffer(
        DistributedDataParallelConfig(use_distributed_optimizer=True),
        torch.float32,
        torch.float32,
        tensors,
        group,
        bucket,
        {tensor: str(i) for i, tensor in enumerate(tensors)},
        1.0,
        list(range(len(tensors))),
        False,
        groups,
    )
    lengths = [bucket.numel_unpadded for bucket in buffer.buckets]
    ends = [0, *accumulate(lengths)]
    starts = []
    for tensor in tensors:
        start, _, bucket_id = buffer.param_index_map[tensor]
        starts.append(start - buffer.bucket_indices[bucket_id][0] + ends[bucket_id])
    return starts, buffer.numel_unpadded


# v1


def qwen3(golden_arch, *, tied):
    """Sizes that are no multiples of 64, so that every padding of the buffers shows."""
    document = golden_arch("qwen3_tiny") | {"vocab_size": 250, "tie_embeddings": tied}
    document["hidden_size"], document["mlp"]["ffn_hidden_size"] = 40, 100
    return parse_arch_text(json.dumps(document), where="test")


def qwen3_moe(golden_arch):
    from llm_ckpt.families import family_named

    config = {
        "model_type": "qwen3_moe",
        "vocab_size": 250,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 40,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 64,
    }
    return family_named("qwen3_moe", where="test").read_config(config, where="test")


# Name → layout, ranks, bucket size; "half": in bfloat16
LAYOUTS = {
    "tp2": ({"tp": 2}, 2, None),
    "dp3": ({}, 3, None),
    "pp2 tied half": ({"pp": 2, "vocab": 250}, 2, None),
    "vpp": ({"pp": 2, "vpp": 2}, 2, None),
    "dp2 buckets": ({}, 2, 3000),
    "ep2": ({"ep": 2}, 2, None),
    "tp2 ep2": ({"tp": 2, "ep": 2}, 4, None),
}


def arch_of(name, golden_arch):
    return qwen3_moe(golden_arch) if "ep" in name else qwen3(golden_arch, tied="tied" in name)


def folder_of(root, rank, *, tp=1, pp=1, ep=1, **_):
    """Megatron-LM's folder of a global rank; the experts' tensor-parallel size is tp."""
    stage = rank // tp % pp if ep == 1 else 0
    shape = {"is_pipelined": pp > 1, "has_experts": ep > 1}
    path = rank_path(tp=rank % tp, pp=stage, ep=rank // tp % ep, **shape)
    return (root / "iter_0000007" / path).parent


def finish(root, arch):
    (root / "arch.json").write_text(arch.dumps())
    (root / "latest_checkpointed_iteration.txt").write_text("7")


def dtype_of(name):
    return torch.bfloat16 if "half" in name else torch.float32


def saved_by_megatron(root, name, arch):
    layout, world_size, bucket = LAYOUTS[name]

    def rank(rank):
        chunks, optimizer = megatron.build(
            arch, bucket=bucket, dtype=dtype_of(name), **{"vocab": PADDED, **layout}
        )
        megatron.fill(arch, chunks, optimizer)
        args = {"data_parallel_size": world_size, "ddp_bucket_size": bucket}
        folder = folder_of(root, rank, **layout)
        if rank < layout.get("tp", 1) * layout.get("pp", 1) * layout.get("ep", 1):
            megatron.save_v1(folder, chunks, optimizer, args)
        else:  # a data-parallel rank that only takes part in gathering
            optimizer.save_parameter_state(str(folder / "distrib_optim.pt"))

    run_ranks(rank, world_size)
    finish(root, arch)


def assert_states(root, arch, dtype):
    """Every parameter's states are what `full` says, and weights too."""
    params = {param.name: param for param in expected_params(arch)}
    with open_source(root) as source:
        assert source.consumed_samples == 40
        names = source.optimizer.names()
        assert len(names) == 3 * len(params)
        for name in names:
            kind, param = split_state(name)
            assert torch.equal(source.read(name), megatron.full(kind, params[param])), name
        for name, param in params.items():
            assert torch.equal(source.read(name), megatron.full("param", param).to(dtype)), name


def loads_in_megatron(root, arch, dtype, world_size, layout):
    def rank(rank):
        chunks, optimizer = megatron.build(arch, dtype=dtype, vocab=PADDED, **layout)
        folder = folder_of(root, rank, **layout)
        file = torch.load(folder / "model_optim_rng.pt", weights_only=False)
        for part in megatron.parts_of(optimizer):
            for state in part.optimizer.state.values():
                state["step"].fill_(0.0)
        optimizer.load_state_dict(file["optimizer"])
        optimizer.load_parameter_state(str(folder / "distrib_optim.pt"))
        count = 0
        for kind, name, tensor, truth in megatron.slices(arch, chunks, optimizer):
            assert torch.equal(tensor, truth), (kind, name)
            count += 1
        steps = {
            float(state["step"])
            for part in megatron.parts_of(optimizer)
            for state in part.optimizer.state.values()
        }
        return count, steps, file["opt_param_scheduler"]["num_steps"]

    for count, steps, samples in run_ranks(rank, world_size):
        assert count > 20
        assert steps == {megatron.STEP}
        assert samples == 40


@pytest.mark.parametrize("name", LAYOUTS)
def test_v1_state_of_megatron_core_is_read_and_written_for_another_layout(
    name, golden_arch, convert, tmp_path
):
    arch, dtype = arch_of(name, golden_arch), dtype_of(name)
    saved_by_megatron(tmp_path / "saved", name, arch)
    assert_states(tmp_path / "saved", arch, dtype)
    convert(tmp_path / "saved", tmp_path / "v2", "v2")
    assert_states(tmp_path / "v2", arch, dtype)
    other = {"tp": 2, "pp": 1, "ep": 2} if arch.moe else {"tp": 2, "pp": 2}
    convert(tmp_path / "v2", tmp_path / "v1", "v1", **other)
    assert_states(tmp_path / "v1", arch, dtype)
    loads_in_megatron(tmp_path / "v1", arch, dtype, 4, other)
    if arch.moe:  # one optimizer for two, and two for one
        convert(tmp_path / "v1", tmp_path / "one", "v1")
        loads_in_megatron(tmp_path / "one", arch, dtype, 1, {})
        convert(tmp_path / "one", tmp_path / "two", "v1", **other)
        loads_in_megatron(tmp_path / "two", arch, dtype, 4, other)


def test_modules_register_parameters_in_the_order_that_is_written(golden_arch):
    """Of dense layers and of layers with experts, by megatron-core's own models."""
    for arch in (qwen3(golden_arch, tied=False), qwen3_moe(golden_arch)):

        def rank(_rank, arch=arch):
            (chunk,) = build_chunks(arch.document(), vocab=PADDED)
            return [name for name, _ in chunk.named_parameters()]

        (names,) = run_ranks(rank, 1)
        assert in_registered_order(reversed(names)) == names


def test_v1_state_of_an_unknown_module_is_refused():
    with pytest.raises(LayoutError, match=r"mixer\.D.*--layout v2 or --no-optimizer"):
        in_registered_order(["decoder.layers.0.mixer.D"])


def edit_torch_file(path, change):
    value = torch.load(path, weights_only=False)
    torch.save(change(value) or value, path)


def test_v1_state_that_cannot_be_placed_is_refused(golden_arch, convert, tmp_path):
    arch = qwen3(golden_arch, tied=False)
    saved_by_megatron(tmp_path / "saved", "tp2", arch)
    folder = folder_of(tmp_path / "saved", 0, tp=2)
    path = folder / "distrib_optim.pt"
    kept = path.read_bytes()

    def shorter(value):
        (buffer,) = value[0].values()
        buffer["numel_unpadded"] -= 64

    def old(value):
        del value["buckets_coalesced"]

    def another(value):
        value[1] = value[0]

    for change, message in (
        (
            shorter,
            r"distrib_optim\.pt: a buffer of .* numel_unpadded \d+, want \d+;.*--no-optimizer",
        ),
        (old, "before February 2024"),
        (another, r"2 buffers, want 1 .*frozen"),
    ):
        path.write_bytes(kept)
        edit_torch_file(path, change)
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / "saved", tmp_path / "v2", "v2")
    for path in (tmp_path / "saved").rglob("distrib_optim.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"in the ranks' own files; want .*distrib_optim\.pt"):
        convert(tmp_path / "saved", tmp_path / "v2", "v2")
    convert(tmp_path / "saved", tmp_path / "v2", "v2", keeps_optimizer=False)
    with open_source(tmp_path / "v2") as source:
        assert source.optimizer is None


# v2


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
    convert(saved, tmp_path / "v1", "v1", tp=2, pp=2)
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
    assert outcome.notes == (f"{saved}/iter_0000002: the optimizer's state is left out",)
    if layout == "v2":
        assert not any(key.startswith("optimizer.") for key in keys_of(tmp_path / "out"))
        assert "optimizer" not in common_of(tmp_path / "out")


def test_other_sharding_types_are_refused_by_name(golden_arch, convert, tmp_path):
    arch = qwen3(golden_arch, tied=False)
    folder = tmp_path / "saved/iter_0000007"
    folder.mkdir(parents=True)

    def rank(_rank):
        from megatron.core import dist_checkpointing, parallel_state

        (chunk,), optimizer = megatron.build(arch, vocab=PADDED)
        megatron.fill(arch, [chunk], optimizer)
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
    finish(tmp_path / "saved", arch)
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

    edit_torch_file(root / "iter_0000002/common.pt", spoil)
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
