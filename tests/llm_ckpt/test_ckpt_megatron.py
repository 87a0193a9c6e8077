"""Megatron-core itself loads what we write, and we read what it writes; its logits are HF's."""

import json
from pathlib import Path

import pytest
import torch

from ckpt_megatron import build_chunks, logits_of
from ckpt_models import assert_same_folder, build_model, load_pickle, read_tensors
from fork_ranks import run_ranks
from llm_ckpt.source import open_source

PADDED = 256  # 250 rows, padded to 128 * tp at tp 1 and 2
LOGITS_TOLERANCE = 1e-4
MODELS = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen3": {},
    "qwen3-tied": {"tie_word_embeddings": True},
}


def document_of(root):
    return json.loads((root / "arch.json").read_text())


def rank_file(root, rank, *, tp, pp):
    suffix = f"_{rank // tp:03d}" if pp > 1 else ""
    return root / f"iter_0000001/mp_rank_{rank % tp:02d}{suffix}/model_optim_rng.pt"


def load_rank(root, rank, *, tp, pp):
    """As Megatron-LM reads it, by torch's own loader."""
    return load_pickle(rank_file(root, rank, tp=tp, pp=pp), mmap=True)


@pytest.mark.parametrize("name", MODELS)
def test_v1_loads_strictly_into_megatron_core_and_gives_the_logits_of_transformers(
    name, hf_folder, convert, tmp_path
):
    family, options = name.split("-")[0], MODELS[name]
    convert(hf_folder(family, **options), tmp_path / "v1", "v1")
    tokens = torch.arange(32)[None] * 7 % 250

    def rank(rank):
        (chunk,) = build_chunks(document_of(tmp_path / "v1"), vocab=PADDED)
        state = load_rank(tmp_path / "v1", rank, tp=1, pp=1)["model"]
        chunk.load_state_dict(state, strict=True)
        return logits_of(chunk, tokens)

    found = run_ranks(rank, 1)[0][..., :250]
    with torch.no_grad():
        wanted = build_model(family, **options)(tokens).logits
    difference = (found - wanted).abs().max().item()
    print(f"{name}: max logits difference {difference:.2e}, scale {wanted.abs().max():.1f}")
    assert difference <= LOGITS_TOLERANCE


@pytest.mark.parametrize(("tp", "pp", "vpp"), [(2, 2, 1), (1, 2, 2)])
@pytest.mark.parametrize("tied", [False, True])
def test_v1_ranks_load_strictly_at_any_layout_and_hold_the_pieces_a_source_reads(
    tp, pp, vpp, tied, hf_folder, convert, tmp_path
):
    folder = hf_folder("qwen3", tie_word_embeddings=tied)
    convert(folder, tmp_path / "v1", "v1", tp=tp, pp=pp, vpp=vpp)

    def rank(rank):
        from llm_train.model.names import named_tensors

        stages = vpp if vpp > 1 else None
        chunks = build_chunks(document_of(tmp_path / "v1"), tp=tp, pp=pp, vpp=stages, vocab=PADDED)
        loaded = load_rank(tmp_path / "v1", rank, tp=tp, pp=pp)
        for index, chunk in enumerate(chunks):
            chunk.load_state_dict(loaded["model" if stages is None else f"model{index}"])
        with open_source(folder) as source:
            for named in (named for chunk in chunks for named in named_tensors(chunk)):
                piece = source.read(named.name, named.shard, padded_vocab_size=PADDED)
                assert torch.equal(piece, named.tensor), named.name

    run_ranks(rank, tp * pp)


@pytest.mark.parametrize("is_per_layer", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_v2_is_loaded_by_megatron_core_at_tp2_pp2(is_per_layer, tied, hf_folder, convert, tmp_path):
    folder = hf_folder("qwen3", tie_word_embeddings=tied)
    convert(folder, tmp_path / "v2", "v2", is_per_layer=is_per_layer)

    def rank(_rank):
        from megatron.core import dist_checkpointing

        from llm_train.model.names import named_tensors

        (chunk,) = build_chunks(
            document_of(tmp_path / "v2"), tp=2, pp=2, vocab=PADDED, is_per_layer=is_per_layer
        )
        for parameter in chunk.parameters():
            parameter.data.fill_(-7.0)
        state = {"model": chunk.sharded_state_dict()}
        loaded = dist_checkpointing.load(state, str(tmp_path / "v2/iter_0000001"))
        chunk.load_state_dict(loaded["model"], strict=True)
        with open_source(folder) as source:
            for named in named_tensors(chunk):
                piece = source.read(named.name, named.shard, padded_vocab_size=PADDED)
                assert torch.equal(piece, named.tensor), named.name
        return loaded["args"].num_layers, loaded["iteration"]

    assert run_ranks(rank, 4) == [(4, 1)] * 4


@pytest.mark.parametrize("is_per_layer", [False, True])
def test_v2_saved_by_megatron_core_converts_to_hf(is_per_layer, hf_folder, convert, tmp_path):
    folder = hf_folder("qwen3")
    saved = tmp_path / "saved"
    (saved / "iter_0000007").mkdir(parents=True)
    with open_source(folder) as source:
        (saved / "arch.json").write_text(json.dumps(source.arch))

    def rank(rank):
        from megatron.core import dist_checkpointing

        from llm_train.model.names import named_tensors

        (chunk,) = build_chunks(
            document_of(saved), tp=2, pp=2, vocab=PADDED, is_per_layer=is_per_layer
        )
        with open_source(folder) as source:
            for named in named_tensors(chunk):
                piece = source.read(named.name, named.shard, padded_vocab_size=PADDED)
                named.tensor.data.copy_(piece)
        state = {"model": chunk.sharded_state_dict(), "iteration": 7}
        dist_checkpointing.save(state, str(saved / "iter_0000007"))

    run_ranks(rank, 4)
    (saved / "latest_checkpointed_iteration.txt").write_text("7")
    convert(saved, tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")


def test_transformers_loads_what_we_write_and_gives_the_same_logits(hf_folder, convert, tmp_path):
    import transformers

    folder = hf_folder("qwen3", dtype=torch.bfloat16)
    convert(folder, tmp_path / "v1", "v1", tp=2)
    (tmp_path / "v1/config.json").unlink()  # so that config.json is made from arch.json
    convert(tmp_path / "v1", tmp_path / "hf", "hf")
    tokens = torch.arange(16)[None]
    models = [
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto")
        for path in (folder, tmp_path / "hf")
    ]
    assert models[1].dtype == torch.bfloat16
    with torch.no_grad():
        first, second = (model(tokens).logits for model in models)
    assert torch.equal(first, second)
    assert read_tensors(Path(folder)).keys() == read_tensors(tmp_path / "hf").keys()
