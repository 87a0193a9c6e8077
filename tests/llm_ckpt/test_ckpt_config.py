"""config.json ⇄ arch.json, judged by transformers; what cannot be said is refused."""

import json

import pytest
import transformers

from llm_ckpt.arch import parse_arch
from llm_ckpt.errors import ArchError
from llm_ckpt.families import family_named

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
}
BASE = {
    "vocab_size": 250,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
}
CONFIGS = {
    "bare": {"num_key_value_heads": None},
    "gqa": {"num_key_value_heads": 2},
    "head_dim": {"head_dim": 32},
    "tied": {"tie_word_embeddings": True},
    "bias": {"attention_bias": True},
    "eps": {"rms_norm_eps": 1e-5},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "llama3": {"rope_parameters": LLAMA3},
    "yarn": {"rope_parameters": YARN},
}
CLASSES = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}


def written_by_transformers(family, options, folder):
    """The config.json transformers itself writes."""
    config = CLASSES[family](**BASE, **json.loads(json.dumps(options)))
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("name", CONFIGS)
def test_minimal_and_full_config_say_the_same_and_come_back(family, name, tmp_path):
    """Our defaults for absent keys are those of transformers, which writes every key."""
    options = {"num_key_value_heads": 4} | CONFIGS[name]
    full = written_by_transformers(family, options, tmp_path)
    ours = family_named(family, where="test")
    arch = ours.read_config(full, where="full")
    minimal = {"model_type": family, **BASE, **options}
    minimal.setdefault("max_position_embeddings", full["max_position_embeddings"])
    assert ours.read_config(minimal, where="minimal") == arch

    again = ours.write_config(arch, dtype="float32")
    (tmp_path / "config.json").write_text(json.dumps(again))
    back = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    # token ids are facts of a tokenizer, not of the architecture
    ignored = {"transformers_version", "architectures", "dtype", "max_window_layers"}
    ignored |= {"_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id"}
    assert {k: v for k, v in back.items() if k not in ignored} == {
        k: v for k, v in CLASSES[family](**full).to_dict().items() if k not in ignored
    }


def test_mlp_bias_is_llamas(tmp_path):
    full = written_by_transformers("llama", {"mlp_bias": True}, tmp_path)
    assert family_named("llama", where="t").read_config(full, where="t").mlp.bias


@pytest.mark.parametrize("family", CLASSES)
def test_the_older_pair_of_rope_keys_says_the_same(family):
    ours = family_named(family, where="test")
    head = {"model_type": family, **BASE, "num_key_value_heads": 4, "max_position_embeddings": 128}
    scaling = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    for older in (
        {"rope_theta": 500000.0, "rope_scaling": scaling},
        {"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", **scaling}},
    ):
        wanted = ours.read_config(head | {"rope_parameters": LLAMA3}, where="new")
        assert ours.read_config(head | older, where="old") == wanted
    assert ours.read_config(head | {"rope_scaling": None}, where="t").position.base == 10000.0


def test_yarn_defaults_are_those_of_transformers():
    """beta_fast 32, beta_slow 1, truncate true (modeling_rope_utils.py)."""
    ours = family_named("llama", where="test")
    short = {k: v for k, v in YARN.items() if k not in ("beta_fast", "beta_slow", "truncate")}
    head = {"model_type": "llama", **BASE, "max_position_embeddings": 128}
    wanted = ours.read_config(head | {"rope_parameters": YARN}, where="t")
    assert ours.read_config(head | {"rope_parameters": short}, where="t") == wanted


REFUSED = {
    "unknown rope type": (
        {"rope_parameters": {"rope_type": "axial", "rope_theta": 1e4}},
        "rope_type 'axial' cannot be converted, want one of default, linear",
    ),
    "unknown rope key": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        r"partial_rotary_factor=0\.5 that cannot be converted",
    ),
    "rope without factor": ({"rope_parameters": {"rope_type": "linear"}}, "needs factor"),
    "yarn attention factor": (
        {"rope_parameters": {**YARN, "attention_factor": 1.5}},
        r"attention_factor=1\.5",
    ),
    "two rope objects": (
        {"rope_parameters": LLAMA3, "rope_scaling": YARN},
        "disagree",
    ),
    "activation": ({"hidden_act": "mish"}, "hidden_act='mish' is not convertible, want silu"),
    "quantised": (
        {"quantization_config": {"bits": 4}},
        "quantization_config.quant_method None cannot be read",
    ),
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention=True cannot be"),
    "misspelt": ({"rms_norm_epss": 1.0}, "did you mean rms_norm_eps"),
}


SLIDING = ["full_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_arch_json_cannot_say_is_refused(family, name):
    options, message = REFUSED[name]
    config = {"model_type": family, **BASE, "max_position_embeddings": 64, **options}
    with pytest.raises(ArchError, match=message):
        family_named(family, where="t").read_config(config, where="config.json")


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": None, "layer_types": SLIDING},
            r"layer_types\[1\]='sliding_attention', but sliding_window is null",
        ),
        ("qwen3", {"layer_types": SLIDING}, "sliding_window is null or switched off"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
            r"layer_types\[1\]='chunked_attention' cannot be converted",
        ),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp=2 cannot be converted, want 1"),
    ],
)
def test_options_of_one_family_are_refused_when_in_use(family, options, message):
    config = {"model_type": family, **BASE, "max_position_embeddings": 64, **options}
    with pytest.raises(ArchError, match=message):
        family_named(family, where="t").read_config(config, where="config.json")


def test_a_missing_key_is_named():
    config = {k: v for k, v in BASE.items() if k != "vocab_size"}
    with pytest.raises(ArchError, match=r"config\.json: missing key vocab_size"):
        family_named("llama", where="t").read_config(config, where="config.json")


def test_an_architecture_the_family_cannot_say_is_refused(golden_arch):
    for path, value in (("attention.softcap", 30.0), ("attention.qk_norm", "head")):
        document = golden_arch("llama_tiny")
        section, key = path.split(".")
        document[section][key] = value
        arch = parse_arch(document, where="t")
        with pytest.raises(ArchError, match=f"family llama cannot express {path}"):
            family_named("llama", where="t").write_config(arch, dtype="float32")


def test_golden_architectures_are_written_and_read_back(golden_arch):
    for name in CLASSES:
        family = family_named(name, where="t")
        arch = parse_arch(golden_arch(f"{name}_tiny"), where="t")
        assert family.read_config(family.write_config(arch, dtype="float32"), where="t") == arch


def test_unknown_family_suggests():
    with pytest.raises(ArchError, match=r"unknown family 'qwen33'; did you mean qwen3\?"):
        family_named("qwen33", where="config.json")
