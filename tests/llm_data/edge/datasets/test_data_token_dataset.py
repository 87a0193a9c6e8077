from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from llm_data.edge.datasets.spool import Spool, SpoolMark
from llm_data.edge.datasets.token_dataset import (
    TokenDatasetWriter,
    find_stem,
    open_token_dataset,
    verify,
)
from llm_data.errors import DataError, FormatError

SEQUENCES = st.lists(st.integers(0, 65000), min_size=1, max_size=9)
DOCUMENTS = st.lists(st.lists(SEQUENCES, min_size=1, max_size=3), min_size=1, max_size=6)


def write_with_megatron(stem, documents, dtype):
    builder = IndexedDatasetBuilder(f"{stem}.bin", dtype=dtype)
    for document in documents:
        tokens = [token for sequence in document for token in sequence]
        builder.add_document(torch.tensor(tokens), [len(sequence) for sequence in document])
    builder.finalize(f"{stem}.idx")


def write_with_ours(stem, documents, dtype):
    with TokenDatasetWriter(stem, dtype=np.dtype(dtype)) as writer:
        for document in documents:
            tokens = np.array([token for sequence in document for token in sequence])
            writer.add_document(tokens, lengths=[len(sequence) for sequence in document])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@settings(max_examples=20, deadline=None)
@given(documents=DOCUMENTS)
def test_pair_is_byte_identical_to_megatrons(tmp_path_factory, dtype, documents):
    folder = tmp_path_factory.mktemp("pair")
    write_with_megatron(folder / "theirs", documents, dtype)
    write_with_ours(folder / "ours", documents, dtype)
    for end in ("bin", "idx"):
        assert (folder / f"ours.{end}").read_bytes() == (folder / f"theirs.{end}").read_bytes()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_each_reads_what_the_other_wrote(tmp_path, dtype):
    documents = [[[1, 2, 3], [4]], [[5]], [[6, 7], [8, 9, 10], [11]]]
    flat = [sequence for document in documents for sequence in document]
    write_with_megatron(tmp_path / "theirs", documents, dtype)
    write_with_ours(tmp_path / "ours", documents, dtype)

    megatron = IndexedDataset(str(tmp_path / "ours"))
    assert [megatron[i].tolist() for i in range(len(megatron))] == flat
    ours = verify(tmp_path / "theirs", index_only=True)
    assert [ours.sequence(i).tolist() for i in range(6)] == flat
    assert [ours.document(i).tolist() for i in range(3)] == [
        [1, 2, 3, 4],
        [5],
        [6, 7, 8, 9, 10, 11],
    ]
    assert ours.document_lengths().tolist() == [4, 1, 6]


def test_documents_megatron_left_empty_read_as_empty(tmp_path):
    builder = IndexedDatasetBuilder(f"{tmp_path}/m.bin", dtype=np.int32)
    builder.end_document()
    builder.add_document(torch.tensor([1, 2]), [2])
    builder.end_document()
    builder.finalize(f"{tmp_path}/m.idx")
    dataset = verify(tmp_path / "m", index_only=True)
    assert [dataset.document(i).tolist() for i in range(3)] == [[], [1, 2], []]


def test_reading_copies_nothing(tmp_path):
    write_with_ours(tmp_path / "d", [[[1, 2, 3]], [[4, 5]]], np.uint16)
    dataset = open_token_dataset(tmp_path / "d")
    assert isinstance(dataset.tokens, np.memmap)
    assert np.shares_memory(dataset.document(1), dataset.tokens)
    assert dataset.document(1).tolist() == [4, 5]


@pytest.mark.parametrize("number", [-1, 2])
def test_a_document_outside_the_dataset_is_an_index_error(tmp_path, number):
    write_with_ours(tmp_path / "d", [[[1]], [[2]]], np.uint16)
    with pytest.raises(IndexError, match="has 2, 0 to 1"):
        open_token_dataset(tmp_path / "d").document(number)


def test_a_failed_writer_leaves_nothing(tmp_path):
    def fail():
        with TokenDatasetWriter(tmp_path / "d", dtype=np.dtype(np.uint16)) as writer:
            writer.add_document(np.array([1]))
            writer.add_document(np.array([65536]))

    with pytest.raises(ValueError, match="outside uint16: 65536"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_prefix_finds_its_only_dataset(tmp_path):
    write_with_ours(tmp_path / "train_text_document", [[[1]]], np.uint16)
    stem = tmp_path / "train_text_document"
    for name in ("train", "train_text_document", "train_text_document.bin"):
        assert find_stem(tmp_path / name) == stem
    write_with_ours(tmp_path / "train_code_document", [[[1]]], np.uint16)
    with pytest.raises(DataError, match="name one"):
        find_stem(tmp_path / "train")


@pytest.mark.parametrize("half", ["bin", "idx"])
def test_a_missing_half_is_named(tmp_path, half):
    write_with_ours(tmp_path / "d", [[[1]]], np.uint16)
    (tmp_path / f"d.{half}").unlink()
    with pytest.raises(DataError, match=rf"/d\.{half} missing"):
        open_token_dataset(tmp_path / "d")


def test_verify_wants_a_manifest_unless_told(tmp_path):
    write_with_ours(tmp_path / "d", [[[1]]], np.uint16)
    with pytest.raises(FormatError, match="no manifest"):
        verify(tmp_path / "d")
    assert len(verify(tmp_path / "d", index_only=True)) == 1


class TestSpool:
    def spool(self, folder: Path, mark: SpoolMark) -> Spool:
        return Spool(folder, dtype=np.dtype(np.uint16), mark=mark)

    def add(self, spool: Spool, tokens: list[int]) -> None:
        spool.append(
            np.array(tokens, "<u2").tobytes(),
            lengths=np.array([len(tokens)], "<i4").tobytes(),
            sizes=np.array([1], "<i4").tobytes(),
        )

    def test_what_lies_beyond_the_mark_is_cut(self, tmp_path):
        first = self.spool(tmp_path / "a", SpoolMark())
        self.add(first, [1, 2, 3])
        mark = first.mark()
        self.add(first, [9, 9])
        first.close()
        second = self.spool(tmp_path / "a", mark)
        self.add(second, [4])
        second.write_index()

        whole = self.spool(tmp_path / "b", SpoolMark())
        self.add(whole, [1, 2, 3])
        self.add(whole, [4])
        whole.write_index()
        for name in ("tokens.bin", "index.idx"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_tokens_changed_behind_our_back_are_noticed(self, tmp_path):
        first = self.spool(tmp_path, SpoolMark())
        self.add(first, [1, 2, 3])
        mark = first.mark()
        first.close()
        first.tokens_path.write_bytes(b"\0\0\2\0\3\0")
        with pytest.raises(DataError, match="not what was written before"):
            self.spool(tmp_path, mark)

    def test_a_table_cut_short_is_noticed(self, tmp_path):
        first = self.spool(tmp_path, SpoolMark())
        self.add(first, [1, 2, 3])
        mark = first.mark()
        first.close()
        (tmp_path / "lengths.int32").write_bytes(b"\3\0")
        with pytest.raises(DataError, match="2 bytes, want 4"):
            self.spool(tmp_path, mark)
