"""Adapters that peft makes, merged by us, against peft's own merge and transformers' logits."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from ckpt_models import load_pickle, read_tensors, save_model
from llm_ckpt.arch import parse_arch
from llm_ckpt.cli import main
from llm_ckpt.edge.convert import Request, run
from llm_ckpt.edge.open import CheckpointOpener
from llm_ckpt.errors import CheckpointError, FormatError
from llm_ckpt.lora import PartFactors, merged_factors
from llm_ckpt.placement import Grid, Pipeline
from llm_ckpt.plan import Target
from llm_ckpt.rules import Qkv
from llm_ckpt.source import open_source

GOLDEN = Path(__file__).parents[1] / "contracts/arch/golden"

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS = {
    "plain": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "every-linear": {"target_modules": LINEARS, "lora_alpha": 5},
    "rslora": {"target_modules": LINEARS, "use_rslora": True},
    "dora": {"target_modules": LINEARS, "use_dora": True},
    "patterns": {
        "target_modules": LINEARS,
        "rank_pattern": {"q_proj": 7},
        "alpha_pattern": {"layers.1.mlp.up_proj": 40, "o_proj": 3},
    },
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "k_proj"]},
    "dora-embeddings": {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    "saved-head": {"target_modules": ["gate_proj"], "modules_to_save": ["lm_head"]},
    "some-layers": {"target_modules": ["q_proj"], "layers_to_transform": [2]},
}


def make_adapter(base, folder, *, family=transformers.AutoModelForCausalLM, **options):
    """An adapter with random B, saved by peft; the state dict that peft merges it into."""
    torch.manual_seed(3)
    model = family.from_pretrained(base)
    config = peft.LoraConfig(r=4, init_lora_weights=False, **{"lora_alpha": 16, **options})
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.1)
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload()
    return {name: tensor.clone() for name, tensor in merged.state_dict().items()}


def merge(base, adapter, output, layout="hf", *, tp=1, pp=1):
    opener = CheckpointOpener(base, None, None, adapter)
    target = Target(layout=layout, grid=Grid(tp=tp), pipeline=Pipeline(pp=pp))
    return run(Request(opener=opener, destination=output, target=target, fingerprint="test"))


def assert_close(found, wanted):
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merge_into_hugging_face_is_pefts_merge(variant, hf_folder, tmp_path):
    base = hf_folder("qwen3")
    wanted = make_adapter(base, tmp_path / "adapter", **VARIANTS[variant])
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    found, before = read_tensors(tmp_path / "merged"), read_tensors(base)
    assert found.keys() == before.keys()
    assert_close(found, wanted)
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {name for name in before if not torch.equal(wanted[name], before[name])}


@pytest.mark.parametrize("variant", ["every-linear", "dora", "embeddings", "dora-embeddings"])
@pytest.mark.parametrize("layout", ["v1", "v2"])
def test_a_merge_into_megatron_from_either_format_is_the_same(
    variant, layout, hf_folder, convert, tmp_path
):
    base = hf_folder("qwen3")
    wanted = make_adapter(base, tmp_path / "adapter", **VARIANTS[variant])
    options = {"tp": 2, "pp": 2} if layout == "v1" else {}
    merge(base, tmp_path / "adapter", tmp_path / "a", layout, **options)
    convert(base, tmp_path / "mcore", "v1", tp=4)
    merge(tmp_path / "mcore", tmp_path / "adapter", tmp_path / "b", layout, **options)
    for name in ("a", "b"):
        convert(tmp_path / name, tmp_path / f"{name}-hf", "hf")
        assert_close(read_tensors(tmp_path / f"{name}-hf"), wanted)


def test_a_merge_in_bf16_is_computed_in_fp32_and_rounded_once(tmp_path):
    """The predecessor merges in fp16 (mindspeed.md §7.4, 13): 70000 would become infinite."""
    base = save_model(tmp_path / "base", "llama", dtype=torch.bfloat16)
    make_adapter(base, tmp_path / "adapter", target_modules=["up_proj"])
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    tensors[name][0] = 1e6
    save_file(tensors, path)
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    weight = "model.layers.0.mlp.up_proj.weight"
    a = tensors[name.replace("lora_B", "lora_A")].double()
    wanted = read_tensors(base)[weight].double() + 4.0 * tensors[name].double() @ a
    found = read_tensors(tmp_path / "merged")[weight]
    assert found.abs().max() > 70000
    assert (
        torch.equal(found, wanted.float().to(torch.bfloat16))
        or ((found.double() - wanted).abs() <= wanted.abs() * 2**-8).all()
    )


def test_a_transposed_base_is_merged_transposed(tmp_path):
    pytest.importorskip("llm_ckpt.families.gpt2")
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=32, vocab_size=100, n_inner=48
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    options = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    wanted = make_adapter(tmp_path / "base", tmp_path / "adapter", **options)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert_close(read_tensors(tmp_path / "merged"), wanted)


def test_a_rank_reads_its_piece_of_an_adapted_weight(hf_folder, tmp_path):
    base = hf_folder("qwen3")
    make_adapter(base, tmp_path / "adapter", target_modules=LINEARS)
    with open_source(base, adapter=tmp_path / "adapter") as source:
        name = "decoder.layers.1.mlp.linear_fc2.weight"
        pieces = [source.read(name, (rank, 2)) for rank in (0, 1)]
        assert torch.equal(torch.cat(pieces, dim=1), source.read(name))


@pytest.fixture
def adapter(hf_folder, tmp_path):
    make_adapter(hf_folder("qwen3"), tmp_path / "adapter", target_modules=["q_proj"])
    return tmp_path / "adapter"


def test_an_adapter_for_another_model_is_refused_with_the_names(adapter, hf_folder, tmp_path):
    base = hf_folder("qwen3", num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"2 of 4 adapted weights are not in the base: model"):
        open_source(base, adapter=adapter)


def test_an_adapter_of_another_width_is_refused(adapter, hf_folder):
    base = hf_folder("qwen3", hidden_size=96)
    with pytest.raises(
        CheckpointError, match=r"the adapter is for \[128, 64\], the base has \[128, 96\]"
    ):
        open_source(base, adapter=adapter)


@pytest.mark.parametrize(
    ("key", "value"), [("peft_type", "LOHA"), ("bias", "all"), ("lora_bias", True)]
)
def test_what_cannot_be_merged_is_refused_by_name(adapter, hf_folder, key, value):
    document = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(document | {key: value}))
    with pytest.raises(FormatError, match=f"{key}={value!r} cannot be merged"):
        open_source(hf_folder("qwen3"), adapter=adapter)


def test_half_an_adapter_is_refused(adapter, hf_folder):
    path = adapter / "adapter_model.safetensors"
    tensors = {name: t for name, t in load_file(path).items() if "layers.3" not in name}
    tensors["base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 64)
    save_file(tensors, path)
    with pytest.raises(FormatError, match=r"layers\.3\.self_attn\.q_proj has lora_A, want"):
        open_source(hf_folder("qwen3"), adapter=adapter)


def test_a_folder_that_is_no_adapter_says_what_is_missing(hf_folder, tmp_path):
    with pytest.raises(FormatError, match=r"adapter_config\.json: file is missing"):
        open_source(hf_folder("qwen3"), adapter=tmp_path)


# Adapters in Megatron's form


def run_command(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def load_ranks(root):
    """Rank folder → its pickle, by torch."""
    return {
        path.parent.name: load_pickle(path)
        for path in sorted(root.glob("iter_0000001/mp_rank_*/model_optim_rng.pt"))
    }


@pytest.fixture
def wide(hf_folder, tmp_path):
    """A base, an adapter of every linear with ranks and alphas of its own, and peft's merge."""
    base = hf_folder("qwen3")
    options = {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"down_proj": 40}}
    wanted = make_adapter(base, tmp_path / "peft", target_modules=LINEARS, **options)
    return base, tmp_path / "peft", wanted


LAYOUT = ("--tp", "2", "--pp", "2")


def test_factors_in_rank_files_make_each_ranks_piece_of_the_merged_weights(wide, tmp_path):
    base, adapter, _ = wide
    run_command("import-lora", adapter, "--base", base, "--output", tmp_path / "lora", *LAYOUT)
    words = ("--to", "mcore", *LAYOUT, "--output")
    run_command("convert", base, *words, tmp_path / "base")
    run_command("convert", base, "--lora", adapter, *words, tmp_path / "merged")
    factors, plain, merged = (load_ranks(tmp_path / name) for name in ("lora", "base", "merged"))
    assert factors.keys() == plain.keys() == merged.keys()
    for rank, file in factors.items():
        scaling = file["args"].lora_alpha / file["args"].lora_r
        sides = file["model"]
        adapted = {name.split(".lora_")[0] for name in sides}
        assert len(adapted) == 2 * 4  # two layers a stage, four fused linears a layer
        for module in adapted:
            a, b = (sides[f"{module}.lora_{side}.default.weight"] for side in "AB")
            found = plain[rank]["model"][f"{module}.weight"] + scaling * b @ a
            wanted = merged[rank]["model"][f"{module}.weight"]
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_an_adapter_comes_back_from_megatron_with_the_same_product(wide, tmp_path):
    base, adapter, wanted = wide
    run_command("import-lora", adapter, "--base", base, "--output", tmp_path / "lora", *LAYOUT)
    run_command("export-lora", tmp_path / "lora", "--output", tmp_path / "again")
    run_command("merge-lora", base, tmp_path / "again", "--output", tmp_path / "merged")
    found = read_tensors(tmp_path / "merged")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-5, msg=name)


def test_peft_loads_what_we_export_and_gives_the_logits_of_the_merged_model(wide, tmp_path):
    base, adapter, _ = wide
    run_command("import-lora", adapter, "--base", base, "--output", tmp_path / "lora", *LAYOUT)
    run_command("export-lora", tmp_path / "lora", "--output", tmp_path / "again")
    run_command("merge-lora", base, adapter, "--output", tmp_path / "merged")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        found = peft.PeftModel.from_pretrained(model, tmp_path / "again").eval()(tokens).logits
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(found, merged(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.fixture
def trained(wide, tmp_path):
    """Base and factors in one v1 folder, as MindSpeed-LLM's training saves them."""
    base, adapter, wanted = wide
    run_command("import-lora", adapter, "--base", base, "--output", tmp_path / "lora", *LAYOUT)
    words = ("--to", "mcore", *LAYOUT, "--output", tmp_path / "trained")
    run_command("convert", base, *words)
    factors = load_ranks(tmp_path / "lora")
    for rank, file in load_ranks(tmp_path / "trained").items():
        adapted = {name.split(".lora_")[0] for name in factors[rank]["model"]}
        state = {
            name.replace(".weight", ".base_layer.weight")
            if name.removesuffix(".weight") in adapted
            else name: tensor
            for name, tensor in file["model"].items()
        }
        file["model"] = state | factors[rank]["model"]
        file["args"].lora_alpha = factors[rank]["args"].lora_alpha
        torch.save(file, tmp_path / f"trained/iter_0000001/{rank}/model_optim_rng.pt")
    return tmp_path / "trained", wanted


def test_factors_beside_the_weights_are_never_lost_silently(trained, tmp_path):
    with pytest.raises(FormatError, match="holds LoRA factors beside its weights; merge them with"):
        open_source(trained[0])


def test_factors_beside_the_weights_are_merged_when_asked(trained, tmp_path):
    folder, wanted = trained
    run_command("convert", folder, "--lora", folder, "--to", "hf", "--output", tmp_path / "hf")
    for name, tensor in read_tensors(tmp_path / "hf").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_folder_without_factors_is_no_adapter(hf_folder, convert, tmp_path):
    convert(hf_folder("qwen3"), tmp_path / "v1", "v1")
    with pytest.raises(FormatError, match="no lora_A or lora_B among the tensors"):
        open_source(hf_folder("qwen3"), adapter=tmp_path / "v1")


def test_parts_that_share_one_a_keep_their_rank():
    """As a Megatron model's fused projection is exported: import gives it back as it was."""
    document = json.loads((GOLDEN / "llama_tiny.json").read_text())
    arch = parse_arch(document, where="test")
    a, parts = torch.randn(3, 64), [torch.randn(rows, 3) for rows in (64, 32, 32)]
    rule = Qkv("m", q="q", k="k", v="v")
    shapes = [(rows, 64) for rows in (64, 32, 32)]
    given = [PartFactors(a, b, 1.0) for b in parts]
    found_a, found_b = merged_factors(rule, given, shapes, arch)
    assert torch.equal(found_a, a)
    assert torch.equal(found_b, rule.merge(parts, arch))
