"""Families of remote code: how several models under one name are told apart, or refused."""

import json

import pytest

from ckpt_zoo import CASES
from llm_ckpt.edge.folder import arch_from_file, companions
from llm_ckpt.errors import ArchError

BY_ID = {case.id: case for case in CASES}


@pytest.fixture
def folder_of(tmp_path):
    """The folder of a case, some keys of its config.json changed."""

    def make(name, **changed):
        folder = BY_ID[name].save(tmp_path / "hf")
        path = folder / "config.json"
        config = {**json.loads(path.read_text()), **changed}
        path.write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def arch_of(folder_of):
    """The architecture such a config.json says."""
    return lambda name, **changed: arch_from_file(folder_of(name, **changed) / "config.json")


@pytest.mark.parametrize(
    ("name", "position", "is_normalized"),
    [
        ("baichuan-7b", "rope", False),
        ("baichuan-2-7b", "rope", True),
        ("baichuan-13b", "alibi", False),
        ("baichuan-2-13b", "alibi", True),
    ],
)
def test_baichuan_models_are_told_apart_by_the_keys_of_their_config(
    name, position, is_normalized, arch_of
):
    arch = arch_of(name)
    assert (arch.position.kind, arch.output_normalized) == (position, is_normalized)


def test_baichuan_2_is_known_by_its_vocabulary_too(arch_of):
    assert arch_of("baichuan-7b", vocab_size=125696).output_normalized


def test_a_model_class_names_the_family_of_a_config_without_model_type(arch_of):
    assert arch_of("minicpm-2b").family == "minicpm"


def test_an_unknown_model_class_without_model_type_is_refused(arch_of):
    with pytest.raises(ArchError, match="model_type"):
        arch_of("minicpm-2b", architectures=["SomeForCausalLM"])


def test_qwen_is_what_arch_json_can_say_up_to_its_trained_length(arch_of):
    stretched = arch_of("qwen", seq_length=2048, max_position_embeddings=8192)
    assert stretched.max_position_embeddings == 2048
    plain = arch_of(
        "qwen",
        seq_length=2048,
        max_position_embeddings=8192,
        use_dynamic_ntk=False,
        use_logn_attn=False,
    )
    assert plain.max_position_embeddings == 8192


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("baichuan-7b", {"hidden_size": 5120}, "7B.*13B"),
        ("chatglm-glm4", {"_name_or_path": "THUDM/chatglm2-6b-32k"}, "divides positions"),
        ("chatglm-3", {"add_bias_linear": True}, "add_bias_linear=True"),
        ("internlm-7b", {"rotary": {"base": 10000, "type": "yarn"}}, "rotary.type='yarn'"),
        ("qwen", {"intermediate_size": 81}, "want an even number"),
        ("qwen", {"no_bias": False}, "no_bias=False"),
        ("bailing_moe-lite", {"n_group": 4}, "n_group is of 2.0"),
        ("bailing_moe-lite", {"score_function": "noisy"}, "score_function='noisy'"),
        ("bailing_moe-lite", {"use_bias": True}, "use_bias=True"),
        (
            "bailing_moe-mini-2.0",
            {"moe_shared_expert_intermediate_size": 7},
            "want moe_intermediate_size",
        ),
        ("hunyuan-large", {"moe_drop_tokens": True}, "moe_drop_tokens=True"),
        ("hunyuan-large", {"num_shared_expert": [1, 2]}, "one number for all layers"),
        ("plm", {"rope_interleave": False}, "rope_interleave=False"),
        ("aquila-2-34b", {"rope_thetta": 1.0}, "did you mean"),
    ],
)
def test_what_arch_json_would_lose_is_refused(name, changed, message, arch_of):
    with pytest.raises(ArchError, match=message):
        arch_of(name, **changed)


def test_the_authors_code_travels_with_the_weights(folder_of):
    folder = folder_of("qwen")
    for name in ("modeling_qwen.py", "qwen.tiktoken"):
        (folder / name).write_text("")
    assert {"modeling_qwen.py", "qwen.tiktoken"} <= {path.name for path in companions(folder)}
