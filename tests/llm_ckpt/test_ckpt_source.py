"""The weight source: names, pieces, errors, and that it reads only the bytes it needs."""

import json
import os
import shutil
from importlib.metadata import entry_points

import pytest
import torch
from safetensors.torch import save_file

from ckpt_models import read_tensors, save_model
from llm_ckpt.errors import CheckpointError, FormatError
from llm_ckpt.source import open_source


@pytest.mark.parametrize("group", ["llm_train.weights", "llm_infer.weights"])
def test_the_entry_point_is_open_source(group):
    (point,) = entry_points(group=group)
    assert point.load() is open_source


@pytest.fixture
def folders(hf_folder, convert, tmp_path):
    """The same weights in each format and several layouts."""
    folder = hf_folder("qwen3")
    convert(folder, tmp_path / "v1", "v1", tp=2, pp=2)
    convert(folder, tmp_path / "v1b", "v1", tp=4, pp=2, vpp=2)
    convert(folder, tmp_path / "v2", "v2")
    convert(folder, tmp_path / "v2b", "v2", is_per_layer=True)
    return [folder, *(tmp_path / name for name in ("v1", "v1b", "v2", "v2b"))]


def test_every_format_gives_the_same_pieces(folders):
    with open_source(folders[0]) as reference:
        for folder in folders[1:]:
            with open_source(folder) as source:
                assert source.arch == reference.arch
                assert source.names() == reference.names()
                for name in reference.names():
                    for shard in ((0, 1), (1, 2), (3, 4)):
                        wanted = reference.read(name, shard, padded_vocab_size=264)
                        found = source.read(name, shard, padded_vocab_size=264)
                        assert torch.equal(found, wanted), (folder.name, name, shard)


def test_pieces_are_those_a_hand_would_cut(hf_folder):
    folder = hf_folder("qwen3")
    hf = read_tensors(folder)
    with open_source(folder) as source:
        layer = "decoder.layers.2."
        gate, up = (hf[f"model.layers.2.mlp.{n}_proj.weight"] for n in ("gate", "up"))
        assert torch.equal(
            source.read(layer + "mlp.linear_fc1.weight", (1, 2)), torch.cat([gate[48:], up[48:]])
        )
        down = hf["model.layers.2.mlp.down_proj.weight"]
        assert torch.equal(source.read(layer + "mlp.linear_fc2.weight", (1, 2)), down[:, 48:])
        q, k, v = (hf[f"model.layers.2.self_attn.{n}_proj.weight"] for n in "qkv")
        # rank 3 of 4 holds the last group: 2 heads of q, one of k, one of v, 16 rows each
        wanted = torch.cat([q[96:128], k[48:64], v[48:64]])
        assert torch.equal(source.read(layer + "self_attention.linear_qkv.weight", (3, 4)), wanted)
        norm = hf["model.layers.2.input_layernorm.weight"]
        assert torch.equal(source.read(layer + "input_layernorm.weight", (1, 2)), norm)
        rows = source.read("embedding.word_embeddings.weight", (1, 2), padded_vocab_size=256)
        assert torch.equal(rows[:122], hf["model.embed_tokens.weight"][128:])
        assert not rows[122:].any()


@pytest.mark.parametrize("index", range(5))
def test_a_rank_reads_only_its_share(index, folders, monkeypatch):
    read = []
    real = os.preadv

    def preadv(descriptor, buffers, offset):
        read.append(sum(len(buffer) for buffer in buffers))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    with open_source(folders[index]) as source:
        for name in source.names():
            piece = source.read(name, (1, 2), padded_vocab_size=256)
            rows_only = "fc2" not in name and "proj" not in name
            # rows narrower than a page are read whole: the disk reads pages anyway
            assert sum(read) <= piece.nbytes * (1 if rows_only else 2), name
            read.clear()


def test_tied_models_have_no_output_layer(hf_folder):
    with open_source(hf_folder("qwen3", tie_word_embeddings=True)) as source:
        assert "output_layer.weight" not in source.names()
        assert source.arch["tie_embeddings"]


def test_a_stored_copy_of_the_tied_head_must_be_equal(tmp_path):
    folder = save_model(tmp_path / "hf", "qwen3", tie_word_embeddings=True)
    tensors = read_tensors(folder)
    copy = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": copy}, folder / "model.safetensors")
    open_source(folder).close()
    copy[3, 3] += 1
    save_file(tensors | {"lm_head.weight": copy}, folder / "model.safetensors")
    read_one = "embedding.word_embeddings.weight"
    with open_source(folder) as source:
        source.read(read_one, (1, 2))  # the other half is equal
        with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed"):
            source.read(read_one)


def test_unknown_missing_and_misshapen_tensors_are_named(tmp_path):
    folder = save_model(tmp_path / "hf", "qwen3")
    tensors = read_tensors(folder)
    path = folder / "model.safetensors"
    save_file(tensors | {"model.layers.0.mlp.gate_projj.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 unknown tensors: .*gate_projj.*did you mean"):
        open_source(folder)
    fewer = {n: t for n, t in tensors.items() if "layers.3." not in n}
    save_file(fewer, path)
    with pytest.raises(CheckpointError, match=r"11 tensors are missing: .* … and 6 more"):
        open_source(folder)
    save_file(tensors | {"model.norm.weight": torch.ones(65)}, path)
    with pytest.raises(FormatError, match=r"model\.norm\.weight has shape \[65\], want \[64\]"):
        open_source(folder)


def test_a_rank_of_another_shape_and_a_missing_rank_are_named(folders, tmp_path):
    v1 = tmp_path / "v1"
    second = v1 / "iter_0000001/mp_rank_01_001/model_optim_rng.pt"
    kept = second.read_bytes()
    shutil.copy(v1 / "iter_0000001/mp_rank_01_000/model_optim_rng.pt", second)
    with pytest.raises(CheckpointError, match=r"output_layer\S+ \[250, 64\]: 8192 of 16000"):
        open_source(v1)
    second.write_bytes(kept)
    second.unlink()
    with pytest.raises(FormatError, match=r"mp_rank_01_001/model_optim_rng\.pt: file is missing"):
        open_source(v1)
    shutil.rmtree(second.parent)
    with pytest.raises(FormatError, match="missing rank files mp_rank_01_001"):
        open_source(v1)


def test_a_wrong_arch_json_is_found_by_shape(folders, tmp_path):
    for name in ("v1", "v2"):
        path = tmp_path / name / "arch.json"
        document = json.loads(path.read_text())
        document["mlp"]["ffn_hidden_size"] = 128
        path.write_text(json.dumps(document))
        with pytest.raises(FormatError, match=r"linear_fc1\.weight.* has shape"):
            open_source(tmp_path / name)


def test_an_iteration_is_chosen(folders, tmp_path):
    root = tmp_path / "v2"
    shutil.copytree(root / "iter_0000001", root / "iter_0000005")
    (root / "latest_checkpointed_iteration.txt").write_text("5\n")
    assert open_source(root).iteration == 5
    assert open_source(root, iteration=1).iteration == 1
    with pytest.raises(FormatError, match="iterations here: iter_0000001, iter_0000005"):
        open_source(root, iteration=2)


def test_a_folder_that_is_nothing_says_what_was_looked_for(tmp_path):
    with pytest.raises(FormatError, match=r"latest_checkpointed_iteration.*config\.json"):
        open_source(tmp_path)
    with pytest.raises(FormatError, match="no such folder"):
        open_source(tmp_path / "nowhere")


def test_an_unknown_name_suggests_the_nearest(hf_folder):
    with open_source(hf_folder("qwen3")) as source:
        with pytest.raises(CheckpointError, match=r"did you mean output_layer\.weight"):
            source.read("output_layer.weights")
        with pytest.raises(CheckpointError, match=r"padded_vocab_size\(8\) < vocab_size\(250\)"):
            source.read("output_layer.weight", padded_vocab_size=8)


def test_foreign_checkpoints_take_an_arch_by_hand(folders, tmp_path):
    for name in ("arch.json", "config.json"):
        (tmp_path / "v2" / name).unlink()
    with pytest.raises(CheckpointError, match="give --arch"):
        open_source(tmp_path / "v2")
    with open_source(tmp_path / "v2", arch=folders[0] / "config.json") as source:
        assert source.arch["hidden_size"] == 64


@pytest.mark.parametrize("layout", ["hf", "v1", "v2"])
def test_blocks_end_to_end_are_what_is_read(layout, hf_folder, convert, tmp_path, monkeypatch):
    """Of a few rows each, whole where a rule mixes rows; padded vocabularies too."""
    folder = hf_folder("qwen3")
    if layout != "hf":
        convert(folder, tmp_path / layout, layout, **({"tp": 2} if layout == "v1" else {}))
        folder = tmp_path / layout
    monkeypatch.setattr("llm_ckpt.layout._BLOCK_BYTES", 3000)
    counts = []
    with open_source(folder) as source:
        for name in source.names():
            for shard in ((0, 1), (1, 2)):
                wanted = source.read(name, shard, padded_vocab_size=256)
                blocks = [b.clone() for b in source.blocks(name, shard, padded_vocab_size=256)]
                assert torch.equal(torch.cat(blocks), wanted)
                counts.append(len(blocks))
    assert max(counts) > 10
