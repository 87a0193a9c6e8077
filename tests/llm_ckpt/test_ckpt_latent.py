"""Latent attention: published config.json files, and megatron-core's own model with our weights."""

from math import ceil, prod

import pytest
import torch

from ckpt_megatron import logits_of
from ckpt_megatron_latent import build, fill, indexer_shapes
from ckpt_models import read_tensors
from ckpt_zoo import CASES, latent
from ckpt_zoo.case import Case
from fork_ranks import run_ranks
from llm_ckpt.errors import ArchError, CheckpointError
from llm_ckpt.families import family_named
from llm_ckpt.params import expected_params
from llm_ckpt.source import open_source

LOGITS_TOLERANCE = 1e-4
VOCAB, PADDED = latent.VOCAB, 256

# deepseek-ai/DeepSeek-V3's config.json, key by key.
V3_671B = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
# What V2-Lite's and V2's say otherwise (deepseek-ai/DeepSeek-V2-Lite, DeepSeek-V2).
V2_LITE = {
    **{
        k: v
        for k, v in V3_671B.items()
        if k not in ("quantization_config", "num_nextn_predict_layers")
    },
    "model_type": "deepseek_v2",
    "aux_loss_alpha": 0.001,
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "rope_scaling": {**V3_671B["rope_scaling"], "mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "topk_group": 1,
    "topk_method": "greedy",
    "vocab_size": 102400,
}
V2_236B = {
    **V2_LITE,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_group": 8,
    "n_routed_experts": 160,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "routed_scaling_factor": 16.0,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
}


def arch_of(config):
    return family_named(config["model_type"], where="test").read_config(config, where="test")


def test_deepseek_v3_has_the_published_number_of_parameters():
    """671B and 11.6B of the prediction layer; the hub counts 684,531,386,000 numbers of all kinds:
    3,918,786,560 in bf16, 680,571,043,840 in fp8 and 41,555,600 in fp32 (scales and biases)."""
    arch = arch_of(V3_671B)
    params = expected_params(arch)
    main = [param for param in params if not param.name.startswith("mtp.")]
    assert sum(prod(param.shape) for param in main) == 671_026_419_200
    table = family_named("deepseek_v3", where="test").table(arch)
    parts = {part.name: part.shape for part in table.hf_parts()}
    parts |= {copy: parts[of] for copy, of in table.duplicates.items()}
    biases = {n: s for n, s in parts.items() if n.endswith("e_score_correction_bias")}
    kept = ("embed_tokens.weight", "head.weight", "gate.weight", "eh_proj.weight", "norm.weight")
    bf16 = {n: s for n, s in parts.items() if n.endswith(kept)}
    fp8 = {n: s for n, s in parts.items() if n not in biases | bf16}
    scales = sum(ceil(rows / 128) * ceil(columns / 128) for rows, columns in fp8.values())
    assert sum(map(prod, bf16.values())) == 3_918_786_560
    assert sum(map(prod, fp8.values())) == 680_571_043_840
    assert scales + sum(map(prod, biases.values())) == 41_555_600


@pytest.mark.parametrize(
    ("config", "billions"), [(V2_LITE, 15.7), (V2_236B, 235.7)], ids=["lite", "236B"]
)
def test_deepseek_v2_has_the_published_number_of_parameters(config, billions):
    found = sum(prod(param.shape) for param in expected_params(arch_of(config)))
    assert round(found / 1e9, 1) == billions


def test_yarn_raises_the_softmax_scale_by_the_square_of_its_temperature():
    """DeepSeek-V3's own code: 192^-0.5 · (0.1 · ln 40 + 1)²."""
    assert arch_of(V3_671B).mla.scale == pytest.approx(192**-0.5 * 1.3688879454113936**2)
    plain = {**V3_671B, "rope_scaling": None}
    assert arch_of(plain).mla.scale is None


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (V3_671B, {"topk_method": "greedy"}, "topk_method='greedy'"),
        (V3_671B, {"scoring_func": "softmax"}, "scoring_func='softmax'"),
        (V3_671B, {"moe_layer_freq": 2}, "moe_layer_freq=2"),
        (V3_671B, {"num_key_value_heads": 8}, "num_attention_heads = 128"),
        (V3_671B, {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        (V2_LITE, {"topk_method": "noaux_tc"}, "greedy or group_limited_greedy"),
        (V2_LITE, {"norm_topk_prob": True}, "norm_topk_prob=True"),
        (V2_LITE, {"qk_rope_head_dim": None}, "qk_rope_head_dim"),
    ],
)
def test_what_the_family_cannot_say_is_refused(config, change, said):
    with pytest.raises(ArchError, match=said):
        arch_of({**config, **change})


@pytest.mark.parametrize(
    ("said", "borrowing"),
    [
        ({}, []),
        ({"index_topk_freq": 4}, [2, 3, 4, 6, 7]),
        ({"index_topk_freq": 3, "index_skip_topk_offset": 1}, [1, 2, 4, 5, 7]),
        ({"index_topk_pattern": "FFSSFSSS"}, [2, 3, 5, 6, 7]),
        ({"indexer_types": ["full"] + ["shared"] * 7}, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_layers_without_an_indexer_are_those_that_transformers_finds(said, borrowing):
    import transformers

    sizes = {**latent.V3, **latent.SPARSE, "num_hidden_layers": 8, **said}
    config = transformers.AutoConfig.for_model("glm_moe_dsa", **sizes)
    types = ["shared" if layer in borrowing else "full" for layer in range(8)]
    assert config.indexer_types == types
    indexer = arch_of({**sizes, "model_type": "glm_moe_dsa"}).mla.indexer
    assert list(indexer.borrowing_layers) == borrowing


def test_a_first_layer_without_an_indexer_is_refused():
    sizes = {**latent.V3, **latent.SPARSE, "indexer_types": ["shared", "full", "full", "full"]}
    with pytest.raises(ArchError, match="the first 'full'"):
        arch_of({**sizes, "model_type": "glm_moe_dsa"})


def test_layers_with_and_without_an_indexer_are_not_stacked(tmp_path, convert):
    case = next(case for case in CASES if case.id == "glm_moe_dsa-borrowing")
    convert(case.save(tmp_path / "hf"), tmp_path / "v2", "v2")
    from torch.distributed.checkpoint import FileSystemReader

    keys = FileSystemReader(tmp_path / "v2/iter_0000001").read_metadata().state_dict_metadata
    at = "self_attention.core_attention.indexer.linear_wk.weight"
    found = sorted(key for key in keys if key.endswith(at))
    assert found == [f"decoder.layers.{layer}.{at}" for layer in (0, 2)]


def prediction_case():
    return next(case for case in CASES if case.id == "deepseek_v3-prediction")


def test_prediction_layers_are_written_with_their_copies_of_embedding_and_head(tmp_path, convert):
    folder = prediction_case().save(tmp_path / "hf")
    convert(folder, tmp_path / "v2", "v2")
    convert(tmp_path / "v2", tmp_path / "again", "hf")
    written = read_tensors(tmp_path / "again")
    for copy, of in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
        assert torch.equal(written[f"model.layers.4.{copy}.weight"], written[f"{of}.weight"])


def test_a_copy_that_differs_is_refused(tmp_path):
    from safetensors.torch import save_file

    folder = prediction_case().save(tmp_path / "hf")
    tensors = read_tensors(folder)
    tensors["model.layers.4.shared_head.head.weight"][3, 5] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with (
        open_source(folder) as source,
        pytest.raises(CheckpointError, match=r"layers\.4\.shared_head\.head\.weight differs"),
    ):
        source.read("output_layer.weight")  # told when its bytes are read


# Megatron-core ranks a group by the sum of its best top_k / top_groups experts: two, as arch.json.
WIDE = {**latent.V3, "num_experts_per_tok": 4}
LITE = {**latent.EXPERTS, "q_lora_rank": None, "topk_method": "greedy", "rms_norm_eps": 1e-3}
MODELS = {
    "v3": Case("deepseek_v3", WIDE),
    "v3-yarn": Case("deepseek_v3", {**WIDE, "rope_parameters": latent.YARN}),
    "lite": Case("deepseek_v2", LITE),
    "lite-yarn": Case(
        "deepseek_v2",
        {**LITE, "rope_parameters": {**latent.YARN, "mscale": 0.707, "mscale_all_dim": 0.707}},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_megatron_core_has_our_names_and_with_our_weights_the_logits_of_transformers(
    name, tmp_path
):
    case, tokens = MODELS[name], torch.arange(24)[None] * 7 % VOCAB
    folder = case.save(tmp_path / "hf")

    def rank(_rank):
        with open_source(folder) as source:
            model = build(source.arch, vocab=PADDED)
            names = fill(model, lambda name: source.read(name, padded_vocab_size=PADDED))
            assert sorted(names) == sorted(source.names())
            return logits_of(model, tokens)

    found = run_ranks(rank, 1)[0][..., :VOCAB]
    wanted = case.expected_logits(folder, tokens)
    difference = (found - wanted).abs().max().item()
    print(f"{name}: max logits difference {difference:.1e}, scale {wanted.abs().max():.1f}")
    assert difference <= LOGITS_TOLERANCE


def test_megatron_core_has_our_names_and_shapes_of_prediction_layers(tmp_path):
    folder = prediction_case().save(tmp_path / "hf")

    def rank(_rank):
        with open_source(folder) as source:
            state = build(source.arch, vocab=VOCAB).state_dict()
            found = {n: tuple(t.shape) for n, t in state.items() if "_extra_state" not in n}
            return found, {name: source.shape(name) for name in source.names()}

    found, wanted = run_ranks(rank, 1)[0]
    assert found == wanted
    assert any(name.startswith("mtp.layers.0.transformer_layer.mlp.experts.") for name in found)


def test_megatron_core_has_our_names_and_shapes_of_the_indexer(tmp_path):
    folder = Case("deepseek_v32", {**latent.V3, **latent.SPARSE}).save(tmp_path / "hf")

    def rank(_rank):
        with open_source(folder) as source:
            at = "decoder.layers.0.self_attention.core_attention.indexer."
            names = [name for name in source.names() if name.startswith(at)]
            ours = {name.removeprefix(at): source.shape(name) for name in names}
            return indexer_shapes(source.arch), ours

    found, ours = run_ranks(rank, 1)[0]
    assert found == ours
