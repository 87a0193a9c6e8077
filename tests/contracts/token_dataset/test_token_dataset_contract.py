"""The samples of SPEC.md, read by megatron-core and by llm_data."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

from llm_data.edge.datasets.token_dataset import open_token_dataset, verify
from llm_data.errors import FormatError

HERE = Path(__file__).parent
STEM = "tiny_text_document"
DOCUMENTS = json.loads((HERE / "golden" / "documents.json").read_text())
CASES = json.loads((HERE / "broken" / "cases.json").read_text())


def test_golden_is_what_megatron_reads():
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(HERE / "golden" / STEM))
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
    assert dataset.document_indices.tolist() == [0, 1, 2, 3]


def test_golden_is_what_we_read():
    dataset = verify(HERE / "golden" / STEM)
    assert [dataset.document(i).tolist() for i in range(len(dataset))] == DOCUMENTS
    assert dataset.manifest is not None
    assert dataset.manifest.eod_id == 0


def test_golden_tokenizer_digest_is_the_one_the_spec_defines():
    body = json.loads((HERE / "golden" / "tokenizer" / "tokenizer.json").read_text())
    kept = {k: v for k, v in body.items() if k not in ("version", "truncation", "padding")}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    manifest = json.loads((HERE / "golden" / f"{STEM}.json").read_text())
    assert manifest["tokenizer"]["digest"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case["reader"] == "open"])
def test_opening_refuses(case):
    with pytest.raises(FormatError) as error:
        open_token_dataset(HERE / "broken" / case / STEM)
    assert CASES[case]["says"] in str(error.value)
    assert f"{case}/{STEM}" in str(error.value)


@pytest.mark.parametrize(
    "case", [name for name, case in CASES.items() if case["reader"] == "verify"]
)
def test_verifying_refuses_what_opening_cannot_see(case):
    open_token_dataset(HERE / "broken" / case / STEM)
    with pytest.raises(FormatError) as error:
        verify(HERE / "broken" / case / STEM)
    assert CASES[case]["says"] in str(error.value)


def test_broken_samples_are_the_ones_the_script_makes(tmp_path):
    spec = importlib.util.spec_from_file_location("make_samples", HERE / "make_samples.py")
    make_samples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_samples)
    make_samples.make_broken(tmp_path, HERE / "golden")
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    kept = {
        path.relative_to(HERE / "broken"): path.read_bytes()
        for path in (HERE / "broken").rglob("*.*")
    }
    assert made == kept
