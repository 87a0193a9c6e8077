"""The arch.json contract: golden files, one broken file a rule, the published schema."""

import hashlib
import json
from pathlib import Path

import pytest

from llm_ckpt.arch import Arch, differences, parse_arch, parse_arch_text
from llm_ckpt.errors import ArchError

CONTRACT = Path(__file__).parents[1] / "contracts" / "arch"
GOLDEN = sorted(CONTRACT.glob("golden/*.json"))

# Broken file → what the error must say. Each breaks one rule of SPEC.md.
BROKEN = {
    "wrong_format": 'want format "arch" version 1',
    "wrong_version": "version 2",
    "unknown_key": "unknown key 'vocab_sise'; did you mean vocab_size?",
    "unknown_nested_key": "attention: unknown key 'headz'; did you mean heads?",
    "missing_key": "mtp: missing key",
    "null_needed_block": "mlp must be an object, since a layer uses it",
    "unused_block": "moe must be null: no layer uses it",
    "heads_not_multiple": r"heads\(5\) is not a multiple of query_groups\(2\)",
    "size_not_positive": "hidden_size: Input should be greater than 0",
    "size_is_text": "hidden_size: .*found '64'",
    "unknown_activation": "mlp.activation",
    "alibi_with_rope_key": "position.alibi: unknown key 'base'",
    "scaling_of_other_kind": "unknown key 'low_freq_factor'",
    "no_layers": "layers",
    "not_json": "not JSON",
    "not_an_object": "want a JSON object",
}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files_are_read_and_written_back_as_they_are(path):
    text = path.read_text()
    arch = parse_arch_text(text, where=path.name)
    assert json.loads(arch.dumps()) == json.loads(text)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_digest_is_sha256_of_the_canonical_json(path):
    document = json.loads(path.read_text())
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    wanted = hashlib.sha256(text.encode()).hexdigest()
    assert parse_arch(document, where="golden").digest() == wanted


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_refused_with_the_reason(name):
    path = CONTRACT / "broken" / f"{name}.json"
    with pytest.raises(ArchError, match=BROKEN[name]) as caught:
        parse_arch_text(path.read_text(), where=path.name)
    assert str(caught.value).startswith(path.name)


def test_every_broken_file_is_tested():
    assert {path.stem for path in CONTRACT.glob("broken/*.json")} == set(BROKEN)


def test_published_schema_is_the_models_own():
    published = json.loads((CONTRACT / "schema.json").read_text())
    assert published == Arch.model_json_schema(), "regenerate tests/contracts/arch/schema.json"


def test_every_key_is_required(golden_arch):
    for key in golden_arch("qwen3_tiny"):
        document = golden_arch("qwen3_tiny")
        del document[key]
        with pytest.raises(ArchError):
            parse_arch(document, where="test")


def test_differences_name_dotted_keys_and_leave_the_family_out(golden_arch):
    left, right = golden_arch("llama_tiny"), golden_arch("llama_tiny")
    right["family"], right["attention"]["head_dim"] = "other", 8
    found = differences(parse_arch(left, where="a"), parse_arch(right, where="b"))
    assert found == ["attention.head_dim"]
