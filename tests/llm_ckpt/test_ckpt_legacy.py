"""Megatron's legacy models against state dicts laid out by hand, as its own code names them."""

import argparse

import pytest
import torch
from click.testing import CliRunner

from ckpt_models import assert_same_folder, load_pickle, read_tensors
from llm_ckpt.cli import main
from llm_ckpt.errors import FormatError, LayoutError
from llm_ckpt.source import open_source

HEADS, GROUPS, DIM, LAYERS = 8, 4, 16, 4
LEGACY = "legacy"


def grouped(q, k, v):
    """Rows of each query group in turn: its queries, its key, its value."""
    rows = []
    for group in range(GROUPS):
        per = HEADS // GROUPS
        rows += [q[group * per * DIM : (group + 1) * per * DIM]]
        rows += [part[group * DIM : (group + 1) * DIM] for part in (k, v)]
    return torch.cat(rows)


def legacy_state(hf, layers, *, norms=("input_norm", "post_attention_norm", "final_norm"), head):
    """What a legacy model's `state_dict_for_save_checkpoint` nests, for one process or stage."""
    encoder = {}
    for local, layer in enumerate(layers):
        at, hf_at = f"layers.{local}.", f"model.layers.{layer}."
        qkv = [hf[f"{hf_at}self_attn.{x}_proj.weight"] for x in "qkv"]
        encoder |= {
            f"{at}{norms[0]}.weight": hf[f"{hf_at}input_layernorm.weight"],
            f"{at}self_attention.query_key_value.weight": grouped(*qkv),
            f"{at}self_attention.dense.weight": hf[f"{hf_at}self_attn.o_proj.weight"],
            f"{at}{norms[1]}.weight": hf[f"{hf_at}post_attention_layernorm.weight"],
            f"{at}mlp.dense_h_to_4h.weight": torch.cat(
                [hf[f"{hf_at}mlp.{x}_proj.weight"] for x in ("gate", "up")]
            ),
            f"{at}mlp.dense_4h_to_h.weight": hf[f"{hf_at}mlp.down_proj.weight"],
        }
    parts, state = {"encoder": encoder}, {}
    if 0 in layers:
        parts["embedding"] = {"word_embeddings": {"weight": hf["model.embed_tokens.weight"]}}
    if LAYERS - 1 in layers:
        encoder[f"{norms[2]}.weight"] = hf["model.norm.weight"]
        if head == "untied":
            parts["output_layer"] = {"weight": hf["lm_head.weight"]}
        elif head == "tied copy":
            state["word_embeddings_for_head"] = {"weight": hf["model.embed_tokens.weight"]}
    return {"language_model": parts, **state}


def save(root, states):
    """A v1 folder of these stages at one tensor-parallel rank."""
    iteration = root / "iter_0000005"
    for stage, state in enumerate(states):
        name = "mp_rank_00" + (f"_{stage:03d}" if len(states) > 1 else "")
        (iteration / name).mkdir(parents=True)
        whole = {"args": argparse.Namespace(), "checkpoint_version": 3.0, "iteration": 5}
        torch.save(whole | {"model": state}, iteration / name / "model_optim_rng.pt")
    (root / "latest_checkpointed_iteration.txt").write_text("5")


def flat(state, prefix=""):
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            yield prefix + key, value
        else:
            yield from flat(value, f"{prefix}{key}/")


OLD = ("input_layernorm", "post_attention_layernorm", "final_layernorm")


@pytest.mark.parametrize("norms", [None, OLD], ids=["last-names", "older-names"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_legacy_checkpoint_becomes_the_hugging_face_folder(
    norms, tied, stages, hf_folder, convert, tmp_path
):
    folder = hf_folder("llama", tie_word_embeddings=tied)
    hf = read_tensors(folder)
    head = "untied" if not tied else "tied copy" if stages > 1 else "none"
    options = {"head": head} | ({} if norms is None else {"norms": norms})
    size = LAYERS // stages
    parts = [range(stage * size, (stage + 1) * size) for stage in range(stages)]
    save(tmp_path / "legacy", [legacy_state(hf, layers, **options) for layers in parts])
    (tmp_path / "legacy/config.json").write_bytes((folder / "config.json").read_bytes())
    convert(tmp_path / "legacy", tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_legacy_checkpoint_is_written_as_its_own_code_nests_it(
    tied, stages, hf_folder, convert, tmp_path
):
    folder = hf_folder("llama", tie_word_embeddings=tied)
    hf, size = read_tensors(folder), LAYERS // stages
    convert(folder, tmp_path / "legacy", "v1", pp=stages, dialect=LEGACY, vocab_multiple=1)
    head = "untied" if not tied else "tied copy" if stages > 1 else "none"
    for stage in range(stages):
        name = "mp_rank_00" + (f"_{stage:03d}" if stages > 1 else "")
        path = tmp_path / f"legacy/iter_0000001/{name}/model_optim_rng.pt"
        found = dict(flat(load_pickle(path)["model"]))
        layers = range(stage * size, (stage + 1) * size)
        wanted = dict(flat(legacy_state(hf, layers, head=head)))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize("layout", [{"tp": 2, "pp": 2}, {"tp": 4}, {"pp": 2, "vpp": 2}])
def test_legacy_goes_to_every_format_and_back(layout, hf_folder, convert, tmp_path):
    folder = hf_folder("llama", attention_bias=True, mlp_bias=True)
    convert(folder, tmp_path / "legacy", "v1", dialect=LEGACY, **layout)
    convert(tmp_path / "legacy", tmp_path / "v2", "v2")
    convert(tmp_path / "v2", tmp_path / "legacy2", "v1", dialect=LEGACY, tp=2)
    convert(tmp_path / "legacy2", tmp_path / "v1", "v1", pp=4)
    convert(tmp_path / "v1", tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")


def test_what_legacy_models_do_not_have_is_refused_by_name(hf_folder, convert, tmp_path):
    with pytest.raises(LayoutError, match="legacy has no norms, sinks or gates in attention"):
        convert(hf_folder("qwen3"), tmp_path / "legacy", "v1", dialect=LEGACY)


def test_an_unknown_part_is_refused(hf_folder, tmp_path):
    folder = hf_folder("llama")
    state = legacy_state(read_tensors(folder), range(LAYERS), head="untied")
    state["language_model"]["decoder"] = {}
    save(tmp_path / "legacy", [state])
    (tmp_path / "legacy/config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(
        FormatError, match="language_model has 'decoder', want encoder, transformer"
    ):
        open_source(tmp_path / "legacy")


def test_the_predecessors_option_writes_legacy(hf_folder, tmp_path):
    words = ["convert", "--load-dir", hf_folder("llama"), "--save-dir", tmp_path / "out"]
    words += ["--save-model-type", "mg", "--save-to-legacy"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    path = tmp_path / "out/iter_0000001/mp_rank_00/model_optim_rng.pt"
    assert load_pickle(path)["model"].keys() == {"language_model"}
