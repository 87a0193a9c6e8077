"""Megatron-core loads our files of models with experts, latent attention and prediction layers."""

import json
from dataclasses import replace

import pytest
import torch

from ckpt_megatron import build_chunks, held_pieces
from ckpt_models import assert_same_folder, load_pickle
from ckpt_zoo import CASES
from fork_ranks import run_ranks
from llm_ckpt.source import open_source

BY_ID = {case.id: case for case in CASES}
# megatron-core has no biases of MLA's projections
BY_ID["latent"] = replace(
    BY_ID["deepseek_v3"], config={**BY_ID["deepseek_v3"].config, "attention_bias": False}
)
PADDED = 256
# model, sizes, number of ranks
V1 = [
    ("mixtral", {"tp": 2}, 2),
    ("qwen3_moe", {"ep": 2}, 2),
    ("qwen3_moe", {"tp": 2, "ep": 2}, 4),
    ("qwen3_moe", {"tp": 2, "ep": 2, "etp": 1}, 2),
    ("qwen3_moe", {"ep": 2, "pp": 2}, 4),
    ("qwen2_moe", {"tp": 2, "ep": 2, "etp": 1, "pp": 2}, 4),
    ("latent", {"tp": 2, "ep": 2, "etp": 1}, 2),
    ("latent", {"tp": 2, "ep": 2}, 4),
    ("deepseek_v3-prediction", {"pp": 2, "ep": 2}, 4),
]


@pytest.fixture(scope="session")
def hf_case(tmp_path_factory):
    """The Hugging Face folder of a case of the zoo."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = BY_ID[name].save(tmp_path_factory.mktemp(name) / "hf")
        return made[name]

    return make


def load_mine(root, *, pp, ep):
    """This rank's file, found by megatron-core's own ranks and Megatron-LM's way to name files."""
    from megatron.core import parallel_state as state

    name = f"mp_rank_{state.get_tensor_model_parallel_rank():02d}"
    name += f"_{state.get_pipeline_model_parallel_rank():03d}" if pp > 1 else ""
    name += f"_{state.get_expert_model_parallel_rank():03d}" if ep > 1 else ""
    path = root / "iter_0000001" / name / "model_optim_rng.pt"
    return load_pickle(path, mmap=True)


def sharded(chunk, **metadata):
    """The sharded state dict; prediction layers want the group of ranks that hold the same."""
    from megatron.core import parallel_state as state

    group = state.get_data_parallel_group(with_context_parallel=True)
    return chunk.sharded_state_dict(metadata={"dp_cp_group": group, **metadata})


def check(chunk, folder):
    with open_source(folder) as source:
        count = 0
        for name, found, wanted in held_pieces(chunk, source, padded=PADDED):
            assert torch.equal(found, wanted), name
            count += 1
    return count


@pytest.mark.parametrize("layout", ["sequential", "grouped"])
@pytest.mark.parametrize(("name", "sizes", "ranks"), V1, ids=str)
def test_v1_loads_strictly_into_megatron_core(
    name, sizes, ranks, layout, hf_case, convert, tmp_path
):
    folder, root = hf_case(name), tmp_path / "v1"
    multiple = PADDED // sizes.get("tp", 1)
    convert(folder, root, "v1", **sizes, experts=layout, vocab_multiple=multiple)
    document = json.loads((root / "arch.json").read_text())

    def rank(_rank):
        (chunk,) = build_chunks(document, **sizes, is_grouped=layout == "grouped", vocab=PADDED)
        for parameter in chunk.parameters():
            parameter.data.fill_(-7.0)
        loaded = load_mine(root, pp=sizes.get("pp", 1), ep=sizes.get("ep", 1))
        chunk.load_state_dict(loaded["model"], strict=True)
        return check(chunk, folder)

    assert all(count > 10 for count in run_ranks(rank, ranks))
    convert(root, tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")


V2 = [
    ("mixtral", {"tp": 2, "ep": 2}, 4, False),
    ("qwen3_moe", {"tp": 2, "ep": 2, "etp": 1}, 2, False),
    ("qwen3_moe", {"pp": 2, "ep": 2}, 4, True),
    ("qwen2_moe", {"ep": 2}, 2, False),
    ("latent", {"tp": 2, "ep": 2}, 4, True),
    ("deepseek_v3-prediction", {"pp": 2, "ep": 2}, 4, True),
]


@pytest.mark.parametrize("layout", ["sequential", "grouped"])
@pytest.mark.parametrize(("name", "sizes", "ranks", "is_per_layer"), V2, ids=str)
def test_v2_is_loaded_by_megatron_core_and_its_own_converts_back(
    name, sizes, ranks, is_per_layer, layout, hf_case, convert, tmp_path
):
    folder, root, saved = hf_case(name), tmp_path / "v2", tmp_path / "saved"
    convert(folder, root, "v2", is_per_layer=is_per_layer)
    document = json.loads((root / "arch.json").read_text())
    (saved / "iter_0000007").mkdir(parents=True)
    (saved / "arch.json").write_text(json.dumps(document))

    def rank(_rank):
        from megatron.core import dist_checkpointing

        (chunk,) = build_chunks(
            document,
            **sizes,
            is_grouped=layout == "grouped",
            vocab=PADDED,
            is_per_layer=is_per_layer,
        )
        for parameter in chunk.parameters():
            parameter.data.fill_(-7.0)
        state = {"model": sharded(chunk)}
        loaded = dist_checkpointing.load(state, str(root / "iter_0000001"))
        chunk.load_state_dict(loaded["model"], strict=True)
        count = check(chunk, folder)
        state = {"model": sharded(chunk), "iteration": 7}
        dist_checkpointing.save(state, str(saved / "iter_0000007"))
        return count

    assert all(count > 10 for count in run_ranks(rank, ranks))
    (saved / "latest_checkpointed_iteration.txt").write_text("7")
    convert(saved, tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")


def test_v2_with_singleton_local_shards_is_read(hf_case, convert, tmp_path):
    folder, saved = hf_case("latent"), tmp_path / "saved"
    (saved / "iter_0000007").mkdir(parents=True)
    with open_source(folder) as source:
        document = source.arch
    (saved / "arch.json").write_text(json.dumps(document))

    def rank(_rank):
        from megatron.core import dist_checkpointing

        (chunk,) = build_chunks(document, tp=2, ep=2, vocab=PADDED)
        with open_source(folder) as source:
            for _, tensor, wanted in held_pieces(chunk, source, padded=PADDED):
                tensor.data.copy_(wanted)
        state = sharded(chunk, singleton_local_shards=True)
        dist_checkpointing.save({"model": state}, str(saved / "iter_0000007"))

    run_ranks(rank, 4)
    (saved / "latest_checkpointed_iteration.txt").write_text("7")
    convert(saved, tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")
