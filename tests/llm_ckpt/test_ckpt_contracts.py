"""Golden and broken files of the checkpoint contracts."""

import json
from pathlib import Path

import pytest
import torch

from ckpt_golden import CONTRACTS, expected_tensors
from ckpt_models import read_tensors
from llm_ckpt.checkpoint import parse_checkpoint_text, tokenizer_digest
from llm_ckpt.edge.verify import check_files
from llm_ckpt.errors import FormatError
from llm_ckpt.source import open_source

CHECKPOINT = CONTRACTS / "checkpoint"
GOLDEN = ("megatron_v1/golden", "megatron_v2/golden/stacked", "megatron_v2/golden/per_layer")
BROKEN = {
    "wrong_format": "format: Input should be 'checkpoint'",
    "wrong_version": "version: Input should be 1",
    "unknown_key": "step: Extra inputs are not permitted",
    "missing_key": "files: Field required",
    "unknown_layout": "layout: Input should be 'v1' or 'v2'",
    "negative_iteration": "iteration",
    "short_digest": "arch_digest",
    "unknown_content": "contains",
    "parallel_zero": "parallel.tp",
    "path_leaves_folder": "'../x.pt' leaves the iteration's folder",
    "not_json": "Invalid JSON",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_checkpoints_hold_the_values_of_the_formula(name, convert, tmp_path):
    with open_source(CONTRACTS / name) as source:
        assert list(check_files(source)) == []
    convert(CONTRACTS / name, tmp_path / "hf", "hf")
    found, wanted = read_tensors(tmp_path / "hf"), expected_tensors()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[tensor], wanted[tensor]) for tensor in wanted)


@pytest.mark.parametrize("name", GOLDEN)
def test_what_we_write_now_is_the_golden_layout(name, convert, tmp_path):
    """Same files, same tensors in them, same lengths: others may rely on it."""
    options = {"layout": "v2", "is_per_layer": name.endswith("per_layer")}
    if "v1" in name:
        options = {"layout": "v1", "tp": 2, "pp": 2, "vocab_multiple": 1}
    convert(CONTRACTS / name, tmp_path / "again", options.pop("layout"), **options)
    golden = CONTRACTS / name / "iter_0000001"
    for path in sorted(golden.rglob("*")):
        if path.suffix in (".distcp", ".pt") and path.name != "common.pt":
            again = tmp_path / "again/iter_0000001" / path.relative_to(golden)
            assert again.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("path", sorted(CHECKPOINT.glob("golden/*.json")), ids=lambda p: p.stem)
def test_golden_checkpoint_json_is_read_and_written_back(path):
    text = path.read_text()
    found = parse_checkpoint_text(text, where=path.name)
    assert json.loads(found.dumps()) == json.loads(text)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoint_json_is_refused_with_the_reason(name):
    path = CHECKPOINT / "broken" / f"{name}.json"
    with pytest.raises(FormatError) as caught:
        parse_checkpoint_text(path.read_text(), where=path.name)
    assert str(caught.value).startswith(path.name)
    assert BROKEN[name] in str(caught.value)


def test_every_broken_file_is_tested():
    assert {path.stem for path in Path(CHECKPOINT).glob("broken/*.json")} == set(BROKEN)


def test_tokenizer_digest_forgets_what_transformers_rewrites():
    body = {"model": {"vocab": {"ä": 0}}}
    # sha256 of {"model":{"vocab":{"ä":0}}} by coreutils' sha256sum
    wanted = "8dbc0433533205f1e373b181801182530e5b62d5a9c716ccb856f190a2686fec"
    assert tokenizer_digest(body) == wanted
    assert tokenizer_digest({"version": "1.0", "truncation": None, "padding": 1, **body}) == wanted
