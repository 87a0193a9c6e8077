"""Compiling rules: no parameter without a rule, none with two, no name used twice."""

import pytest

from llm_ckpt.arch import parse_arch
from llm_ckpt.errors import CheckpointError
from llm_ckpt.families import dense
from llm_ckpt.params import EMBEDDING, OUTPUT, expected_params
from llm_ckpt.rules import Same
from llm_ckpt.table import compile_table


@pytest.fixture
def llama(golden_arch):
    return parse_arch(golden_arch("llama_tiny"), where="t")


def test_table_is_in_model_order_and_immutable(llama):
    table = compile_table(dense.RULES, llama)
    names = list(table.entries)
    assert (names[0], names[-1]) == (EMBEDDING, OUTPUT)
    assert names.index("decoder.layers.0.mlp.linear_fc2.weight") < names.index(
        "decoder.layers.1.input_layernorm.weight"
    )
    with pytest.raises(TypeError):
        table.entries["x"] = None


def test_a_parameter_without_a_rule_is_an_error(llama):
    rules = [rule for rule in dense.RULES if "fc2" not in rule.mcore]
    with pytest.raises(
        CheckpointError, match=r"4 parameters have no rule: decoder\.layers\.0\.mlp"
    ):
        compile_table(rules, llama)


def test_a_parameter_with_two_rules_is_an_error(llama):
    rules = (*dense.RULES, Same(OUTPUT, "other.weight"))
    with pytest.raises(
        CheckpointError, match=r"1 parameters have more than one rule: output_layer"
    ):
        compile_table(rules, llama)


def test_a_hugging_face_name_used_twice_is_an_error(llama):
    rules = [rule for rule in dense.RULES if rule.mcore != OUTPUT]
    rules.append(Same(OUTPUT, "model.embed_tokens.weight"))
    with pytest.raises(CheckpointError, match="1 Hugging Face names are used twice"):
        compile_table(rules, llama)


def test_leftovers_are_listed_first_five_and_a_count(llama):
    table = compile_table(dense.RULES, llama)
    names = {part.name for part in table.hf_parts()}
    extra = {f"extra.{i}" for i in range(7)}
    with pytest.raises(CheckpointError, match=r"7 unknown tensors: extra\.0, .* … and 2 more"):
        table.check_hf_names(names | extra, where="folder")


def test_shapes_are_those_of_the_architecture(llama):
    shapes = {param.name: param.shape for param in expected_params(llama)}
    assert shapes["decoder.layers.0.self_attention.linear_qkv.weight"] == ((4 + 2 * 2) * 16, 64)
    assert shapes["decoder.layers.0.mlp.linear_fc1.weight"] == (256, 64)
    assert shapes["decoder.layers.0.self_attention.linear_proj.weight"] == (64, 64)


def test_layer_norm_brings_biases(golden_arch):
    document = golden_arch("llama_tiny")
    document["norm"]["kind"] = "layer"
    names = {param.name for param in expected_params(parse_arch(document, where="t"))}
    assert {"decoder.final_layernorm.bias", "decoder.layers.3.pre_mlp_layernorm.bias"} <= names
