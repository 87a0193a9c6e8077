"""No fact of arch.json is lost on its way to megatron-core."""

import json
import types
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from llm_train.arch import Arch, ArchError, LayerRun, OtherPosition, Rope, parse
from llm_train.edge.arch_facts import read_document
from llm_train.model.fields import TABLE, UnsupportedArchError, config_fields

CONTRACT = Path(__file__).parents[1] / "contracts" / "arch"


def leaves(model, prefix=""):
    """Dotted paths of every field, down to where the table may speak of a whole part at once."""
    whole = {entry.field for entry in TABLE}
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        parts = [part for part in classes(field.annotation) if issubclass(part, BaseModel)]
        if path in whole or not parts:
            yield path
        for part in parts:
            if path not in whole:
                yield from leaves(part, f"{path}.")


def classes(annotation):
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation]
    return [one for part in typing.get_args(annotation) for one in classes(part)]


def test_every_field_of_arch_stands_in_the_table_once():
    fields = [entry.field for entry in TABLE]
    assert sorted(set(leaves(Arch))) == sorted(fields)


def golden(name="qwen3_tiny", **changes):
    document = json.loads((CONTRACT / "golden" / f"{name}.json").read_text())
    for path, value in changes.items():
        target = document
        *parents, last = path.split("__")
        for parent in parents:
            target = target[parent]
        target[last] = value
    return document


@pytest.mark.parametrize("path", sorted((CONTRACT / "golden").glob("*.json")), ids=lambda p: p.stem)
def test_golden_archs_are_read(path):
    arch = parse(json.loads(path.read_text()), where=path.name)
    assert isinstance(arch.layers[0], LayerRun)
    assert isinstance(arch.position, Rope | OtherPosition)


@pytest.mark.parametrize("path", sorted((CONTRACT / "broken").glob("*.json")), ids=lambda p: p.stem)
def test_broken_archs_are_refused(path):
    with pytest.raises(ArchError, match=path.name):
        parse(read_document(path), where=path.name)


def test_unknown_key_names_the_nearest():
    document = golden()
    document["attention"]["query_group"] = document["attention"].pop("query_groups")
    with pytest.raises(ArchError, match=r"attention\.query_group: unknown key; did you mean query"):
        parse(document, where="arch.json")


def test_what_cannot_be_built_is_refused_by_name():
    arch = parse(golden(attention__shared_kv=2), where="arch.json")
    with pytest.raises(
        UnsupportedArchError, match=r"attention\.shared_kv=2 with attention\.qk_norm=head "
    ):
        config_fields(arch)


def test_config_fields_of_the_tiny_qwen3():
    fields = config_fields(parse(golden(), where="arch.json"))
    # By hand from the golden file.
    wanted = {
        "num_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "kv_channels": 32,
        "ffn_hidden_size": 128,
        "normalization": "RMSNorm",
        "layernorm_epsilon": 1e-6,
        "qk_layernorm": True,
        "gated_linear_unit": True,
        "add_bias_linear": False,
    }
    assert {key: fields[key] for key in wanted} == wanted
