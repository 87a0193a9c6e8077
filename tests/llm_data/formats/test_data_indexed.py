import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from llm_data.errors import FormatError
from llm_data.formats.indexed import check_tables, pack_index, unpack_index

DOCUMENTS = st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=6)


def megatron_index(folder, documents, dtype):
    """The index megatron-core's own builder writes for documents of sequences of these lengths."""
    builder = IndexedDatasetBuilder(str(folder / "m.bin"), dtype=dtype)
    for lengths in documents:
        builder.add_document(torch.zeros(sum(lengths), dtype=torch.int64), lengths)
    builder.finalize(str(folder / "m.idx"))
    return (folder / "m.idx").read_bytes()


def tables(documents):
    lengths = [n for document in documents for n in document]
    ends = np.cumsum([0] + [len(document) for document in documents])
    return np.array(lengths, dtype=np.int32), ends.astype(np.int64)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@settings(max_examples=30, deadline=None)
@given(documents=DOCUMENTS)
def test_index_bytes_are_those_of_megatrons_builder(tmp_path_factory, dtype, documents):
    lengths, ends = tables(documents)
    wanted = megatron_index(tmp_path_factory.mktemp("m"), documents, dtype)
    assert pack_index(np.dtype(dtype), lengths=lengths, documents=ends) == wanted


@settings(deadline=None)
@given(documents=DOCUMENTS)
def test_unpack_undoes_pack(documents):
    lengths, ends = tables(documents)
    index = unpack_index(pack_index(np.dtype("<i4"), lengths=lengths, documents=ends), where="x")
    check_tables(index, where="x")
    assert index.dtype == np.int32
    assert index.lengths.tolist() == lengths.tolist()
    assert index.documents.tolist() == ends.tolist()
    assert index.num_tokens * 4 == index.bin_bytes


def test_unpacking_makes_views_not_copies():
    data = bytearray(
        pack_index(np.dtype("<u2"), lengths=np.ones(5, "i4"), documents=np.array([0, 5]))
    )
    index = unpack_index(memoryview(data), where="x")
    data[34] = 9
    assert index.lengths[0] == 9


def test_multimodal_index_is_named_as_such(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.int32, multimodal=True)
    builder.add_item(torch.tensor([1, 2]), mode=1)
    builder.end_document()
    builder.finalize(str(tmp_path / "m.idx"))
    with pytest.raises(FormatError, match="multimodal"):
        unpack_index((tmp_path / "m.idx").read_bytes(), where="m.idx")
