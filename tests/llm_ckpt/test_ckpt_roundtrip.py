"""HF → v1 → v2 → HF over a grid of layouts, bit by bit against the folder transformers wrote."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt_models import assert_same_folder, load_pickle

LAYOUTS = [
    {"tp": tp, "pp": pp, "vpp": vpp, "layers": layers}
    for tp in (1, 2, 4)
    for pp, vpp, layers in ((1, 1, None), (2, 1, None), (4, 1, None), (2, 2, None), (2, 1, (1, 3)))
]


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    family=st.sampled_from(["llama", "qwen3"]),
    tied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    vocab=st.sampled_from([250, 256, 257]),
    first=st.sampled_from(LAYOUTS),
    second=st.sampled_from(LAYOUTS),
    is_per_layer=st.booleans(),
)
def test_hf_v1_v1_v2_hf_is_bit_identical(
    hf_folder,
    convert,
    tmp_path_factory,
    family,
    tied,
    dtype,
    vocab,
    first,
    second,
    is_per_layer,
):
    folder = hf_folder(family, tie_word_embeddings=tied, dtype=dtype, vocab_size=vocab)
    work = tmp_path_factory.mktemp("trip")
    convert(folder, work / "a", "v1", **first)
    convert(work / "a", work / "b", "v1", vocab_multiple=1, **second)
    convert(work / "b", work / "c", "v2", is_per_layer=is_per_layer)
    convert(work / "c", work / "hf", "hf")
    assert_same_folder(folder, work / "hf")
    convert(work / "c", work / "hf_from_v2_to_v1", "v1", **first)
    convert(work / "hf_from_v2_to_v1", work / "hf2", "hf")
    assert_same_folder(folder, work / "hf2")


@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_biases_everywhere_come_back(layout, hf_folder, convert, tmp_path):
    folder = hf_folder("llama", attention_bias=True, mlp_bias=True)
    options = {"tp": 2, "pp": 2} if layout == "v1" else {}
    convert(folder, tmp_path / "m", layout, **options)
    convert(tmp_path / "m", tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")


def test_more_ranks_than_query_groups_come_back(hf_folder, convert, tmp_path):
    folder = hf_folder("qwen3")
    convert(folder, tmp_path / "v1", "v1", tp=8)
    convert(tmp_path / "v1", tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")


def test_a_sharded_folder_comes_back_sharded(hf_folder, convert, tmp_path):
    folder = hf_folder("llama", shard="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    convert(folder, tmp_path / "v2", "v2")
    convert(tmp_path / "v2", tmp_path / "hf", "hf", max_shard_bytes=200_000)
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert_same_folder(folder, tmp_path / "hf")
    import transformers

    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")


def test_casting_rounds_as_torch_does(hf_folder, convert, tmp_path):
    from ckpt_models import read_tensors

    folder = hf_folder("qwen3")
    convert(folder, tmp_path / "v1", "v1", tp=2, dtype=torch.bfloat16)
    convert(tmp_path / "v1", tmp_path / "hf", "hf")
    wanted = {name: tensor.to(torch.bfloat16) for name, tensor in read_tensors(folder).items()}
    found = read_tensors(tmp_path / "hf")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert '"dtype": "bfloat16"' in (tmp_path / "hf/config.json").read_text()


def test_large_tensors_are_stored_in_row_blocks_that_read_back(
    hf_folder, convert, tmp_path, monkeypatch
):
    monkeypatch.setattr("llm_ckpt.execute.MAX_CHUNK_BYTES", 5000)
    folder = hf_folder("llama")
    convert(folder, tmp_path / "v2", "v2")
    convert(tmp_path / "v2", tmp_path / "v1", "v1", tp=2)
    convert(tmp_path / "v1", tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")


def test_transformer_engine_names_are_read_in_v1(hf_folder, convert, tmp_path):
    """A file saved by torch itself with the fused names, buffers and optimizer beside."""
    folder = hf_folder("qwen3")
    convert(folder, tmp_path / "v1", "v1")
    path = tmp_path / "v1/iter_0000001/mp_rank_00/model_optim_rng.pt"
    state = load_pickle(path)
    renamed = {
        name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_").replace(
            "pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"
        ): torch.nn.Parameter(tensor)
        for name, tensor in state["model"].items()
    }
    renamed["decoder.layers.0.self_attention._extra_state"] = torch.zeros(3)
    state |= {"model": renamed, "optimizer": {"step": torch.ones(2)}}
    torch.save(state, path)
    convert(tmp_path / "v1", tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")
