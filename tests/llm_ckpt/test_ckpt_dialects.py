"""State dicts as each program names them, against lists written by hand from its documentation."""

import json

import pytest
import torch

from ckpt_models import assert_same_folder
from ckpt_zoo import CASES
from llm_ckpt.errors import LayoutError
from llm_ckpt.formats.dialects import every_spelling
from llm_ckpt.source import open_source

BY_ID = {case.id: case for case in CASES}


@pytest.fixture(scope="session")
def hf_case(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            made[name] = BY_ID[name].save(tmp_path_factory.mktemp(name) / "hf")
        return made[name]

    return make


@pytest.fixture
def state_of(hf_case, convert, tmp_path):
    """The state dicts of a rank's file, by torch's own loader, and the folder they came from."""

    def state_of(name, rank="mp_rank_00", **options):
        convert(hf_case(name), tmp_path / "v1", "v1", **options)
        path = tmp_path / "v1/iter_0000001" / rank / "model_optim_rng.pt"
        loaded = torch.load(path, weights_only=False)
        keys = [key for key in loaded if key.startswith("model")]
        states = [loaded[key] for key in sorted(keys)]
        return states if len(states) > 1 else states[0]

    return state_of


def layer(state, at):
    return {name.removeprefix(at): t for name, t in state.items() if name.startswith(at)}


@pytest.fixture
def read(hf_case):
    def read(case, name):
        with open_source(hf_case(case)) as source:
            return source.read(name)

    return read


# mindspeed.md §2.2: linear_qkv = [q_down; kv_down(+rope)], q_layernorm, k_layernorm.
def test_mindspeed_joins_the_down_projections_of_latent_attention(state_of, read):
    state = state_of("deepseek_v32", dialect="mindspeed")
    attention = layer(state, "decoder.layers.1.self_attention.")
    at = "decoder.layers.1.self_attention."
    wanted = torch.cat(
        [
            read("deepseek_v32", at + "linear_q_down_proj.weight"),
            read("deepseek_v32", at + "linear_kv_down_proj.weight"),
        ]
    )
    assert torch.equal(attention["linear_qkv.weight"], wanted)
    assert {name for name in attention if "bias" not in name} == {
        "linear_qkv.weight",
        "q_layernorm.weight",
        "linear_q_up_proj.weight",
        "k_layernorm.weight",
        "linear_kv_up_proj.weight",
        "linear_proj.weight",
        "dsa_indexer.wq_b.weight",
        "dsa_indexer.wk.weight",
        "dsa_indexer.k_norm.weight",
        "dsa_indexer.weights_proj.weight",
    }
    assert "dsa_indexer.k_norm.bias" in attention


def test_mindspeed_without_a_query_latent_keeps_the_queries_whole_on_every_rank(state_of, read):
    name, at = "deepseek_v3-no-q-lora", "decoder.layers.0.self_attention."
    state = state_of(name, rank="mp_rank_01", dialect="mindspeed", tp=2)
    wanted = torch.cat(
        [read(name, at + "linear_q_proj.weight"), read(name, at + "linear_kv_down_proj.weight")]
    )
    assert torch.equal(state[at + "linear_qkv.weight"], wanted)


# mindspeed.md §2.2: --mla-mm-split stores 4 matrices (qk_nope, qk_rope, kv_nope, v).
def test_mindspeed_splits_the_up_projections_head_by_head(state_of, read, hf_case):
    state = state_of("deepseek_v3", dialect="mindspeed", splits_mla=True)
    config = json.loads((hf_case("deepseek_v3") / "config.json").read_text())
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    rope, value = config["qk_rope_head_dim"], config["v_head_dim"]
    at = "decoder.layers.2.self_attention."
    q = read("deepseek_v3", at + "linear_q_up_proj.weight").view(heads, nope + rope, -1)
    kv = read("deepseek_v3", at + "linear_kv_up_proj.weight").view(heads, nope + value, -1)
    for name, wanted in {
        "linear_qk_nope": q[:, :nope],
        "linear_qk_rope": q[:, nope:],
        "linear_kv_nope": kv[:, :nope],
        "linear_v": kv[:, nope:],
    }.items():
        assert torch.equal(state[at + name + ".weight"], wanted.flatten(0, 1)), name
    assert at + "linear_q_up_proj.weight" not in state


# mindspeed.md §2.2: mtp.final_layernorms.{i}; the main final norm moves to `final_layernorm`;
# embeddings are on the last stage too.
def test_mindspeed_prediction_layers(state_of):
    state = state_of("deepseek_v3-prediction", rank="mp_rank_00_001", dialect="mindspeed", pp=2)
    outside = {n for n in state if not n.startswith("decoder.") and ".transformer_layer." not in n}
    assert outside == {
        "embedding.word_embeddings.weight",
        "final_layernorm.weight",
        "output_layer.weight",
        "mtp.layers.0.enorm.weight",
        "mtp.layers.0.hnorm.weight",
        "mtp.layers.0.eh_proj.weight",
        "mtp.final_layernorms.0.weight",
    }
    assert "decoder.final_layernorm.weight" not in state


# mindspeed.md §2.2: DualPipeV puts MTP, final norm and head on pp0/vpp1.
def test_dualpipev_has_the_head_on_the_first_stage(state_of):
    options = {"pp": 2, "schedule": "dualpipev", "dialect": "mindspeed"}
    first, second = state_of("deepseek_v3-prediction", rank="mp_rank_00_000", **options)
    assert "embedding.word_embeddings.weight" in first
    assert {"final_layernorm.weight", "output_layer.weight", "mtp.layers.0.enorm.weight"} <= {
        *second
    }
    assert "output_layer.weight" not in first


# mindspeed.md §2.2: physical order [E_local, hidden, 2*ffn/TP] reshaped to (hidden, -1);
# megatron-core's GroupedMLP views weight1 as (experts, hidden, -1): the same.
@pytest.mark.parametrize("dialect", ["megatron", "mindspeed"])
def test_grouped_experts(dialect, state_of, read):
    options = {"experts": "grouped", "ep": 2, "tp": 2, "dialect": dialect}
    state = state_of("qwen3_moe", rank="mp_rank_01_001", **options)
    at = "decoder.layers.0.mlp.experts."
    with_experts = [n for n in state if n.startswith(at)]
    assert with_experts == [at + "weight1", at + "weight2"]
    first = read("qwen3_moe", at + "local_experts.0.linear_fc1.weight")
    hidden = first.shape[1]
    weight1 = state[at + "weight1"].view(-1, hidden, first.shape[0] // 2)
    count = weight1.shape[0]
    for local in range(count):  # the second block of experts, the second half of each
        expert = at + f"local_experts.{count + local}."
        gate, up = read("qwen3_moe", expert + "linear_fc1.weight").chunk(2)
        half = torch.cat([gate.chunk(2)[1], up.chunk(2)[1]])
        assert torch.equal(weight1[local], half.T)
        down = read("qwen3_moe", expert + "linear_fc2.weight").chunk(2, dim=1)[1]
        rows = state[at + "weight2"].view(count, -1, hidden)
        assert torch.equal(rows[local], down.T)


def test_transformer_engine_experts_have_a_number_at_the_end(state_of, read):
    state = state_of("qwen3_moe", rank="mp_rank_00_001", experts="te", ep=2)
    at = "decoder.layers.0.mlp.experts."
    count = sum(name.startswith(at + "linear_fc1.weight") for name in state)
    wanted = read("qwen3_moe", at + f"local_experts.{count}.linear_fc2.weight")
    assert torch.equal(state[at + "linear_fc2.weight0"], wanted)
    assert not [name for name in state if "local_experts" in name]


def test_transformer_engine_keeps_norms_in_linears_but_not_before_experts(state_of):
    state = state_of("deepseek_v3", implementation="transformer_engine", experts="te")
    dense, sparse = layer(state, "decoder.layers.0."), layer(state, "decoder.layers.3.")
    # get_gpt_layer_with_transformer_engine_spec: MLA's input norm stays apart
    for names in (dense, sparse):
        assert "input_layernorm.weight" in names
        assert "self_attention.linear_q_up_proj.layer_norm_weight" in names
        assert "self_attention.linear_kv_up_proj.layer_norm_weight" in names
    assert "mlp.linear_fc1.layer_norm_weight" in dense
    assert "pre_mlp_layernorm.weight" in sparse


# mindspeed.md §2.2: GDN as Hugging Face has it, replicated; full attention keeps q, k, v apart.
def test_mindspeed_linear_attention_is_hugging_faces(state_of, hf_case):
    from ckpt_models import read_tensors

    name = "qwen3_next"
    state, theirs = state_of(name, dialect="mindspeed"), read_tensors(hf_case(name))
    renamed = {
        "in_proj_qkvz.weight": "linear_attn.in_proj_qkvz.weight",
        "in_proj_ba.weight": "linear_attn.in_proj_ba.weight",
        "conv1d.weight": "linear_attn.conv1d.weight",
        "A_log": "linear_attn.A_log",
        "dt_bias": "linear_attn.dt_bias",
        "norm.weight": "linear_attn.norm.weight",
        "out_proj.weight": "linear_attn.out_proj.weight",
        "q_proj.weight": "self_attn.q_proj.weight",
        "k_proj.weight": "self_attn.k_proj.weight",
        "v_proj.weight": "self_attn.v_proj.weight",
    }
    checked = set()
    for key, tensor in state.items():
        at, found, rest = key.partition(".self_attention.")
        if found and rest in renamed:
            number = at.rsplit(".", 1)[1]
            assert torch.equal(tensor, theirs[f"model.layers.{number}.{renamed[rest]}"]), key
            checked.add(rest)
    assert checked == set(renamed)


def test_linear_attention_of_mindspeed_at_two_tensor_ranks_is_refused(hf_case, convert, tmp_path):
    with pytest.raises(LayoutError, match=r"tp\(2\): MindSpeed-LLM keeps linear attention whole"):
        convert(hf_case("qwen3_next"), tmp_path / "v1", "v1", tp=2, dialect="mindspeed")


def test_a_split_of_latent_attention_is_mindspeeds_only(hf_case, convert, tmp_path):
    with pytest.raises(LayoutError, match="mla-mm-split is for --dialect mindspeed"):
        convert(hf_case("deepseek_v3"), tmp_path / "v1", "v1", splits_mla=True)


# mindspeed.md §2.2, --moe-tp-extend-ep: experts are split over EP * TP, block ep * TP + tp.
def test_tp_extends_ep_deals_out_whole_experts(state_of, read):
    options = {"tp_extends_ep": True, "tp": 2, "ep": 2, "experts": "sequential"}
    state = state_of("qwen3_moe", rank="mp_rank_01_000", **options)
    at = "decoder.layers.0.mlp.experts.local_experts."
    local = sorted({int(n.removeprefix(at).split(".")[0]) for n in state if n.startswith(at)})
    each = len(local)
    wanted = read("qwen3_moe", f"{at}{each}.linear_fc2.weight")  # block 0 * 2 + 1
    assert torch.equal(state[f"{at}0.linear_fc2.weight"], wanted)


def test_names_of_older_releases_are_read(hf_case, convert, tmp_path):
    """`mlp.shared_expert_gate` became `mlp.shared_experts.gate_weight` in MindSpeed-LLM's v2."""
    folder = hf_case("qwen2_moe")
    convert(folder, tmp_path / "v1", "v1", dialect="mindspeed")
    (path,) = (tmp_path / "v1").rglob("*.pt")
    file = torch.load(path, weights_only=False)
    old = ".mlp.shared_expert_gate.weight"
    file["model"] = {
        n.replace(".mlp.shared_experts.gate_weight", old): t for n, t in file["model"].items()
    }
    assert any(name.endswith(old) for name in file["model"])
    torch.save(file, path)
    convert(tmp_path / "v1", tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")


def test_every_spelling_is_used_by_some_model_of_the_zoo(hf_case):
    """So that a misspelt name in a table cannot lie there unused."""
    from llm_ckpt.edge.folder import arch_from_file
    from llm_ckpt.formats.rank_state import blocks_of, spellings_found
    from llm_ckpt.params import expected_params

    tables, used = every_spelling(), set()
    cases = ("deepseek_v32-prediction", "qwen3_next", "qwen2_moe", "gemma2", "deepseek_v3")
    for name in (*cases, "deepseek_v3-no-q-lora", "mamba2", "bloom"):
        arch = arch_from_file(hf_case(name) / "config.json")
        for block in blocks_of(expected_params(arch)):
            for found in spellings_found(block, tables).values():
                used |= {spelling.stored.replace(".0", ".{m}", 1) for spelling in found}
                used |= {spelling.stored for spelling in found}
    unused = [s.stored for s in tables if s.stored not in used and not s.stored.endswith("bias")]
    assert not unused
