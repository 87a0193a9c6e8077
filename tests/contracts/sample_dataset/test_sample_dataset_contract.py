"""The samples of SPEC.md, read by megatron-core and by llm_data."""

import importlib.util
import json
from pathlib import Path

import pytest

from llm_data.edge.datasets.sample_dataset import open_sample_dataset, verify_samples
from llm_data.errors import FormatError

HERE = Path(__file__).parent
GOLDEN = sorted(path.name for path in (HERE / "golden").iterdir())
CASES = json.loads((HERE / "broken" / "cases.json").read_text())


def rows_of(name):
    """Every column's rows, and the boundaries of packed ones, as written by hand."""
    return json.loads((HERE / "golden" / name / "rows.json").read_text())


def cases_for(reader):
    return [name for name, case in CASES.items() if case["reader"] == reader]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_columns_are_what_megatron_reads(name):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    for column, rows in rows_of(name).items():
        ending = "" if column == "cu_seqlens" else "_document"
        dataset = IndexedDataset(str(HERE / "golden" / name / f"tiny_packed_{column}{ending}"))
        assert [dataset[i].tolist() for i in range(len(dataset))] == rows
        assert dataset.document_indices.tolist() == list(range(len(rows) + 1))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rows_are_what_we_read(name):
    dataset = verify_samples(HERE / "golden" / name / "tiny")
    wanted = rows_of(name)
    boundaries = wanted.pop("cu_seqlens", None)
    assert {column: [] for column in dataset.columns} == {column: [] for column in wanted}
    for number in range(len(dataset)):
        row = {column: view.tolist() for column, view in dataset.row(number).items()}
        assert row == {column: rows[number] for column, rows in wanted.items()}
        if boundaries is not None:
            assert dataset.boundaries(number).tolist() == boundaries[number]


def test_only_columns_have_names_that_mindspeed_takes_for_columns():
    found = (HERE / "golden" / "sft_packed").glob("tiny_packed_*_document*")
    columns = {path.name.removeprefix("tiny_packed_").rsplit("_document")[0] for path in found}
    assert columns == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("case", cases_for("open"))
def test_opening_refuses(case):
    with pytest.raises(FormatError) as error:
        open_sample_dataset(HERE / "broken" / case / "tiny")
    assert CASES[case]["says"] in str(error.value)
    assert f"{case}/tiny_packed" in str(error.value)


@pytest.mark.parametrize("case", cases_for("verify"))
def test_verifying_refuses_what_opening_cannot_see(case):
    open_sample_dataset(HERE / "broken" / case / "tiny")
    with pytest.raises(FormatError) as error:
        verify_samples(HERE / "broken" / case / "tiny")
    assert CASES[case]["says"] in str(error.value)
    assert f"{case}/tiny_packed" in str(error.value)


@pytest.mark.parametrize("kind", ["golden", "broken"])
def test_samples_are_the_ones_the_script_makes(tmp_path, kind):
    spec = importlib.util.spec_from_file_location("make_samples", HERE / "make_samples.py")
    make_samples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_samples)
    {"golden": make_samples.make_golden, "broken": make_samples.make_broken}[kind](tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    kept = {path.relative_to(HERE / kind): path.read_bytes() for path in (HERE / kind).rglob("*.*")}
    assert made == kept
