import json
from dataclasses import replace
from pathlib import Path

import pytest

from llm_data.errors import FormatError
from llm_data.formats.sample_manifest import (
    TemplateEntry,
    pack_sample_manifest,
    unpack_sample_manifest,
)

GOLDEN = Path(__file__).parents[2] / "contracts/sample_dataset/golden"
KINDS = sorted(path.name for path in GOLDEN.iterdir())


def golden(kind):
    return (GOLDEN / kind / "tiny_packed.json").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_pack_writes_the_keys_and_values_that_unpack_read(kind):
    manifest = unpack_sample_manifest(golden(kind), where="x")
    assert json.loads(pack_sample_manifest(manifest)) == json.loads(golden(kind))


def test_unpack_undoes_pack():
    manifest = unpack_sample_manifest(golden("sft_packed"), where="x")
    manifest = replace(manifest, template=TemplateEntry(name="é", digest="0"), notes={"cut": 2})
    assert unpack_sample_manifest(pack_sample_manifest(manifest), where="x") == manifest


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("columns",), {}, "x: columns: {}, want a list"),
        (("columns", 1, "dtype"), "int64", "x: columns[1].dtype: 'int64', want one of uint16"),
        (("columns", 0, "name"), "", "x: columns[0].name: '', want a name"),
        (("columns", 0, "kind"), "ids", "columns[0]: unknown key 'kind'"),
        (("template", "digest"), None, "template.digest: None, want a string"),
        (("options", "thinking"), 1.5, "options.thinking: 1.5, want a string"),
        (("notes", "truncated"), -1, "notes.truncated: -1, want an integer"),
        (("files", "labels.bin", "bytes"), "9", "files.labels.bin.bytes: '9', want an integer"),
        (("num_loss_tokens",), True, "num_loss_tokens: True, want an integer"),
        (("packed",), 0, "packed: 0, want true or false"),
        (("seq_length",), 1.0, "seq_length: 1.0, want an integer"),
        (("on_error",), "warn", "on_error: 'warn', want one of stop, skip"),
        (("tokenizer", "file"), 1, "tokenizer.file: 1, want a string"),
        (("created_by",), None, "created_by: None, want a string"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(path, value, says):
    body = json.loads(golden("sft"))
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(FormatError) as error:
        unpack_sample_manifest(json.dumps(body).encode(), where="x")
    assert says in str(error.value)
