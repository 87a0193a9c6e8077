"""Linear attention and state spaces in Megatron's layouts, against megatron-core's own modules."""

import argparse
import json

import pytest
import torch

from ckpt_megatron_linear import build_gdn, build_mamba
from ckpt_models import assert_same_folder
from ckpt_zoo.case import Case
from ckpt_zoo.state_space import GDN, MAMBA2, NEMOTRON_H
from fork_ranks import run_ranks
from llm_ckpt.source import open_source

pytest.importorskip("triton", reason="megatron-core's mamba_mixer imports it")

PADDED = 256  # 250 rows, padded to 128 * tp at tp 1 and 2
LOGITS_TOLERANCE = 1e-4
MODELS = {
    "mamba2": (Case("mamba2", MAMBA2), build_mamba),
    "mamba2-tied": (Case("mamba2", {**MAMBA2, "tie_word_embeddings": True}), build_mamba),
    "nemotron_h": (
        Case(
            "nemotron_h",
            {
                **NEMOTRON_H,
                "layers_block_type": [
                    *("linear_attention", "full_attention", "mlp", "linear_attention", "mlp"),
                ],
            },
        ),
        build_mamba,
    ),
    "qwen3_5_text": (Case("qwen3_5_text", {**GDN, "intermediate_size": 36}), build_gdn),
}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The Hugging Face folder of one of MODELS."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = MODELS[name][0].save(tmp_path_factory.mktemp(name) / "hf")
        return made[name]

    return make


def document_of(root):
    return json.loads((root / "arch.json").read_text())


def load_rank(root, rank):
    """As Megatron-LM reads it, by torch's own loader."""
    path = root / f"iter_0000001/mp_rank_{rank:02d}/model_optim_rng.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True, mmap=True)["model"]


def sharded(model):
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return {"model": model.sharded_state_dict(metadata={"dp_cp_group": group})}


@pytest.mark.parametrize("name", MODELS)
def test_v1_loads_strictly_into_megatron_core_and_gives_the_logits_of_transformers(
    name, folder_of, convert, tmp_path
):
    case, build = MODELS[name]
    convert(folder_of(name), tmp_path / "v1", "v1")
    tokens = torch.arange(24)[None] * 7 % 250

    def rank(rank):
        model = build(document_of(tmp_path / "v1"), vocab=PADDED)
        model.load_state_dict(load_rank(tmp_path / "v1", rank), strict=True)
        positions = torch.arange(tokens.shape[1])[None]
        with torch.no_grad():
            return model(tokens, positions, None)

    found = run_ranks(rank, 1)[0][..., :250]
    wanted = case.expected_logits(folder_of(name), tokens)
    difference = (found - wanted).abs().max().item()
    print(f"{name}: max logits difference {difference:.2e}, scale {wanted.abs().max():.1f}")
    assert difference <= LOGITS_TOLERANCE


@pytest.mark.parametrize(("tp", "is_fused"), [(1, True), (2, True), (2, False)])
@pytest.mark.parametrize("name", MODELS)
def test_megatron_core_loads_our_v2_as_our_v1(name, tp, is_fused, folder_of, convert, tmp_path):
    convert(folder_of(name), tmp_path / "v1", "v1", tp=tp)
    convert(folder_of(name), tmp_path / "v2", "v2")

    def rank(rank):
        from megatron.core import dist_checkpointing

        document = document_of(tmp_path / "v2")
        model = MODELS[name][1](document, tp=tp, vocab=PADDED, is_fused=is_fused)
        for parameter in model.parameters():
            parameter.data.fill_(-7.0)
        loaded = dist_checkpointing.load(sharded(model), str(tmp_path / "v2/iter_0000001"))
        model.load_state_dict(loaded["model"], strict=True)
        pieces = load_rank(tmp_path / "v1", rank)
        for key, parameter in model.named_parameters():
            assert torch.equal(parameter, pieces.pop(key)), key
        assert not pieces

    run_ranks(rank, tp)


@pytest.mark.parametrize(("tp", "is_fused"), [(1, True), (2, False)])
@pytest.mark.parametrize("name", MODELS)
def test_v2_saved_by_megatron_core_converts_to_hf(name, tp, is_fused, folder_of, convert, tmp_path):
    convert(folder_of(name), tmp_path / "v1", "v1", tp=tp)
    saved = tmp_path / "saved"
    (saved / "iter_0000007").mkdir(parents=True)
    with open_source(folder_of(name)) as source:
        (saved / "arch.json").write_text(json.dumps(source.arch))

    def rank(rank):
        from megatron.core import dist_checkpointing

        model = MODELS[name][1](document_of(saved), tp=tp, vocab=PADDED, is_fused=is_fused)
        model.load_state_dict(load_rank(tmp_path / "v1", rank), strict=True)
        state = sharded(model) | {"iteration": 7}
        dist_checkpointing.save(state, str(saved / "iter_0000007"))

    run_ranks(rank, tp)
    (saved / "latest_checkpointed_iteration.txt").write_text("7")
    convert(saved, tmp_path / "hf", "hf")
    assert_same_folder(folder_of(name), tmp_path / "hf")
