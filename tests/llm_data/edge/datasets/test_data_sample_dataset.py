import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_data.edge.datasets.sample_dataset import (
    find_sample_stem,
    open_sample_dataset,
    verify_samples,
)
from llm_data.edge.datasets.token_dataset import TokenDatasetWriter
from llm_data.errors import DataError, FormatError
from llm_data.formats import sample_checks

CONTRACT = Path(__file__).parents[3] / "contracts/sample_dataset"
IGNORED, PAD, VOCAB = -100, 1, 258


@pytest.fixture(scope="session")
def samples():
    """The contract's script, which lays files out without llm_data."""
    spec = importlib.util.spec_from_file_location("samples", CONTRACT / "make_samples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """A private copy of the golden unpacked dataset."""
    return Path(shutil.copytree(CONTRACT / "golden/sft", tmp_path / "data"))


def is_as_the_spec_says(made):
    """The rules for rows, entry by entry."""
    columns, boundaries = made["columns"], made["boundaries"]
    for number, ids in enumerate(columns["input_ids"]):
        mask, labels = columns["attention_mask"][number], columns["labels"][number]
        ends = boundaries[number] if boundaries else [0, len(ids)]
        if ends[0] != 0 or sorted(set(ends)) != ends or len(ends) < 2 or ends[-1] > len(ids):
            return False
        for at, (token, one, label) in enumerate(zip(ids, mask, labels, strict=True)):
            ordinal = sum(end <= at for end in ends)
            if not 0 <= token < VOCAB or (label != IGNORED and (label != token or at in ends)):
                return False
            if at >= ends[-1]:
                if (token, one, label) != (PAD, 0, IGNORED):
                    return False
            elif one != ordinal:
                return False
    return True


@pytest.mark.parametrize("block_tokens", [1, 17, 1 << 20])
@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["sft", "sft_packed"]),
    column=st.sampled_from(["input_ids", "attention_mask", "labels", "boundaries"]),
    row=st.integers(0, 3),
    at=st.integers(0, 15),
    value=st.sampled_from([IGNORED, 0, 1, 2, 3, 10, 15, 16, 79, 257, 258]),
)
def test_verify_refuses_a_changed_entry_exactly_if_the_spec_does(
    tmp_path_factory, samples, block_tokens, kind, column, row, at, value
):
    made = samples.GOLDEN[kind]()
    rows = made["boundaries"] if column == "boundaries" else made["columns"][column]
    value = value if column == "labels" else max(value, 0)
    if rows:
        changed = rows[row % len(rows)]
        changed[at % len(changed)] = value
    valid = is_as_the_spec_says(made)
    folder = tmp_path_factory.mktemp("changed") / "data"
    samples.write(folder, samples.files_of(made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_checks, "_BLOCK_TOKENS", block_tokens)
        if valid:
            verify_samples(folder / "tiny")
        else:
            with pytest.raises(FormatError, match="row "):
                verify_samples(folder / "tiny")


@pytest.mark.parametrize("name", ["tiny", "tiny_packed", "tiny_packed.json"])
def test_prefix_stem_and_manifest_mean_the_dataset(folder, name):
    assert find_sample_stem(folder / name) == folder / "tiny_packed"
    assert len(open_sample_dataset(folder / name)) == 4


def test_a_pair_means_itself(folder):
    assert find_sample_stem(folder / "tiny_packed_labels_document") is None
    assert find_sample_stem(folder / "tiny_packed_labels_document.bin") is None


def test_a_prefix_of_both_kinds_is_refused(folder):
    with TokenDatasetWriter(folder / "tiny_text_document", dtype=np.dtype(np.uint16)) as writer:
        writer.add_document(np.array([1, 2]))
    with pytest.raises(DataError, match=r"tiny_packed, .*tiny_text_document; name one"):
        find_sample_stem(folder / "tiny")
    assert find_sample_stem(folder / "tiny_packed") == folder / "tiny_packed"
    assert find_sample_stem(folder / "tiny_text_document") is None


def test_a_prefix_of_a_token_dataset_alone_is_not_of_samples(tmp_path):
    with TokenDatasetWriter(tmp_path / "d_text_document", dtype=np.dtype(np.uint16)) as writer:
        writer.add_document(np.array([1, 2]))
    assert find_sample_stem(tmp_path / "d") is None
    with pytest.raises(DataError, match=r"d: no sample dataset: .*d_packed\.json is missing"):
        open_sample_dataset(tmp_path / "d")


@pytest.mark.parametrize("name", ["tiny", "tiny_packed"])
def test_columns_without_a_manifest_are_named(folder, name):
    (folder / "tiny_packed.json").unlink()
    with pytest.raises(DataError, match=r"tiny_packed\.json is missing.*tiny_packed_input_ids_doc"):
        find_sample_stem(folder / name)


def test_reading_rows_copies_nothing(folder):
    dataset = open_sample_dataset(folder / "tiny")
    for name, view in dataset.row(2).items():
        assert np.shares_memory(view, dataset.columns[name].tokens)


def test_a_row_that_is_a_sample_has_its_own_ends_as_boundaries(folder):
    dataset = open_sample_dataset(folder / "tiny")
    assert [dataset.boundaries(i).tolist() for i in range(4)] == [[0, 7], [0, 10], [0, 9], [0, 5]]


def test_a_row_beyond_the_last_is_an_index_error(folder):
    with pytest.raises(IndexError, match="sequence 4: the dataset has 4"):
        open_sample_dataset(folder / "tiny").row(4)
