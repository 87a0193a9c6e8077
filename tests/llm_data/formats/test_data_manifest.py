import json

import pytest

from llm_data.errors import FormatError
from llm_data.formats.manifest import (
    FileEntry,
    Manifest,
    Source,
    Tokenizer,
    pack_manifest,
    unpack_manifest,
)

MANIFEST = Manifest(
    dtype="uint16",
    num_documents=2,
    num_sequences=2,
    num_tokens=9,
    key="text",
    level="document",
    append_eod=True,
    eod_id=None,
    options={"split_sentences": True, "language": "english", "keep_newlines": None},
    tokenizer=Tokenizer(
        digest="ab", vocab_size=10, eos_token=None, eos_id=None, file="tokenizer.json"
    ),
    sources=(Source(path="é", files=1, bytes=2, digest="cd"),),
    drops={"empty": 1},
    on_error="stop",
    files={"bin": FileEntry(bytes=18, sha256="ef"), "idx": FileEntry(bytes=66, sha256="01")},
    created_by="test",
)


def test_unpack_undoes_pack():
    assert unpack_manifest(pack_manifest(MANIFEST), where="x") == MANIFEST


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("tokenizer", "vocab_size"), -1, "x: tokenizer.vocab_size: -1, want an integer ≥ 0"),
        (("tokenizer", "digest"), 3, "tokenizer.digest: 3, want a string"),
        (("sources", 0, "bytes"), True, "sources[0].bytes: True, want an integer"),
        (("files", "bin", "sha"), "0", "files.bin: unknown key 'sha'"),
        (("append_eod",), "yes", "append_eod: 'yes', want true or false"),
        (("level",), "page", "level: 'page', want one of document, sentence"),
        (("options", "language"), [], "options.language: [], want a string"),
        (("dtype",), "int64", "want one of uint16, int32"),
        (("drops", "empty"), 1.5, "drops.empty: 1.5, want an integer"),
        (("files", "idy"), {}, "want bin, idx"),
        (("sources",), {}, "sources: {}, want a list"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(path, value, says):
    body = json.loads(pack_manifest(MANIFEST))
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(FormatError) as error:
        unpack_manifest(json.dumps(body).encode(), where="x")
    assert says in str(error.value)
