"""Pretraining documents against transformers and megatron-core's own builder."""

import pickle
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import orjson
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from transformers import PreTrainedTokenizerFast

from llm_data.backends.backend import BackendName, BackendSpec
from llm_data.backends.choice import choose
from llm_data.edge.datasets.spool import Spool, SpoolMark
from llm_data.errors import DataError
from llm_data.records import Batch, Place, Reason, Record, RecordRefusedError, Reject, Shape
from llm_data.tasks.pretrain import PretrainSpec
from task_batches import batch_of, rows_of

GIGATOKEN = BackendSpec(name=BackendName.GIGATOKEN)


@pytest.fixture
def spec(tokenizer):
    """The trained byte-level tokenizer, whose <|endoftext|> is 0."""
    return PretrainSpec(
        tokenizer_file=tokenizer / "tokenizer.json", key="text", eod_id=0, dtype="int32"
    )


@pytest.fixture
def transformers_ids(tokenizer):
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"))
    return lambda text: reference(text)["input_ids"]


@pytest.fixture
def texts(corpus):
    return [orjson.loads(line)["text"] for line in corpus.read_bytes().splitlines()[:300]]


@dataclass(frozen=True)
class BySemicolon:
    """A splitter that gives empty sentences too."""

    def build(self):
        return self

    def split(self, text):
        return text.split(";")


@dataclass(frozen=True)
class TitleAndBody:
    """A reader of whole records, as handlers have them."""

    def build(self):
        return self._text

    @staticmethod
    def _text(record):
        if "body" not in record:
            raise RecordRefusedError(Reason.MISSING_KEY, "no key 'body'")
        return f"{record.get('title', '')}{record['body']}"


@pytest.mark.parametrize("backend", [BackendSpec(), GIGATOKEN], ids=lambda spec: spec.name.value)
@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("eod_id", [0, None])
def test_documents_are_transformers_ids_and_the_end(
    spec, transformers_ids, texts, backend, dtype, eod_id
):
    spec = replace(spec, backend=backend, dtype=dtype, eod_id=eod_id)
    encoded = spec.build()(batch_of(*({"text": text} for text in texts)))
    end = [] if eod_id is None else [eod_id]
    wanted = [transformers_ids(text) + end for text in texts]
    assert rows_of(encoded, spec) == {"text": wanted}
    assert (encoded.num_documents, encoded.num_tokens) == (300, sum(map(len, wanted)))
    assert np.frombuffer(encoded.sizes, np.int32).tolist() == [1] * 300


@pytest.mark.parametrize("backend", [BackendSpec(), GIGATOKEN], ids=lambda spec: spec.name.value)
def test_sentences_become_the_files_that_megatrons_builder_writes(
    spec, transformers_ids, texts, backend, tmp_path
):
    """As its preprocess_data.py: no empty sentence, one end a document, on the last sentence."""
    documents = [";".join(texts[i : i + 1 + i % 4]) for i in range(60)]
    documents += [";;leading", "trailing;;", "in;;between"]
    builder = IndexedDatasetBuilder(str(tmp_path / "megatron.bin"), dtype=np.int32)
    for document in documents:
        sentences = [ids for ids in map(transformers_ids, document.split(";")) if ids]
        sentences[-1] = [*sentences[-1], 0]
        lengths = [len(ids) for ids in sentences]
        builder.add_document([number for ids in sentences for number in ids], lengths)
    builder.finalize(str(tmp_path / "megatron.idx"))

    spec = replace(spec, sentences=BySemicolon(), backend=backend)
    encode = spec.build()
    spool = Spool(tmp_path / "ours", dtype=np.dtype(np.int32), mark=SpoolMark())
    for start in (0, 20):
        some = documents[:20] if start == 0 else documents[20:]
        encoded = encode(batch_of(*({"text": text} for text in some)))
        assert encoded.num_documents == len(some)
        (column,) = encoded.columns
        spool.append(column.tokens, lengths=column.lengths, sizes=encoded.sizes)
    spool.write_index()
    for ours, theirs in ((spool.tokens_path, "megatron.bin"), (spool.index_path, "megatron.idx")):
        assert ours.read_bytes() == (tmp_path / theirs).read_bytes()


def test_whole_records_are_read_by_the_given_reader(spec, transformers_ids):
    spec = replace(spec, text=TitleAndBody())
    bodies = [
        {"title": "ka ", "body": "lo"},
        {"title": "x"},
        {"body": ""},
        b"[1]",
        b"{",
        {"body": "mi"},
    ]
    encoded = spec.build()(batch_of(*bodies))
    wanted = [[*transformers_ids("ka lo"), 0], [*transformers_ids("mi"), 0]]
    assert rows_of(encoded, spec) == {"text": wanted}
    assert [(reject.place.number, reject.reason, reject.raw) for reject in encoded.rejects] == [
        (2, Reason.MISSING_KEY, '{"title":"x"}'),
        (3, Reason.EMPTY, None),
        (4, Reason.WRONG_TYPE, "[1]"),
        (5, Reason.INVALID_JSON, "{"),
    ]


def test_documents_without_tokens_are_rejects_in_the_order_of_records(spec):
    """A text of separators only has no sentence with tokens."""
    spec = replace(spec, sentences=BySemicolon())
    broken = Reject(place=Place(0, 2, 2), reason=Reason.BROKEN_ROW, detail="2 fields, want 1")
    records = [
        Record(Place(0, n, n), Shape.TEXT, text) for n, text in ((1, ";;"), (3, "ka;lo"), (4, ""))
    ]
    batch = Batch(parts=[records[0], broken, *records[1:]], payload_bytes=8)
    encoded = spec.build()(batch)
    found = [(reject.place.number, reject.reason) for reject in encoded.rejects]
    assert found == [(1, Reason.EMPTY), (2, Reason.BROKEN_ROW), (4, Reason.EMPTY)]
    assert np.frombuffer(encoded.sizes, np.int32).tolist() == [2]
    assert (encoded.num_documents, encoded.end) == (1, Place(0, 4, 4))


def test_a_batch_without_documents_is_empty_columns(spec):
    for backend in (BackendSpec(), GIGATOKEN):
        encoded = replace(spec, backend=backend).build()(batch_of({"text": ""}))
        assert [tuple(column) for column in encoded.columns] == [(b"", b"")]
        assert (encoded.sizes, encoded.num_documents, encoded.num_tokens) == (b"", 0, 0)


def test_a_backend_is_proven_on_the_texts_of_the_first_batches_only(spec, texts):
    taken = []

    def batches():
        for start in range(0, len(texts), 10):
            taken.append(start)
            yield batch_of({"no": "text"}, *({"text": text} for text in texts[start : start + 10]))

    first = spec.first_texts(batches())
    assert first == list(texts[:64])
    assert len(taken) == 7
    chosen = choose("gigatoken", tokenizer_file=spec.tokenizer_file, texts=first)
    assert chosen.spec == GIGATOKEN
    assert "the same ids as hf in 64 of the run's documents" in chosen.message


def test_specs_survive_the_way_to_a_worker(spec, texts):
    spec = replace(spec, text=TitleAndBody(), sentences=BySemicolon(), backend=GIGATOKEN)
    arrived = pickle.loads(pickle.dumps(spec))
    batch = batch_of(*({"body": text} for text in texts))
    assert arrived == spec
    assert arrived.build()(batch) == spec.build()(batch)


def test_encoding_and_its_worker_need_no_heavy_library():
    modules = "llm_data.tasks.pretrain, llm_data.edge.runs.worker_process"
    code = f"import {modules}, sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"numpy", "pyarrow", "gigatoken", "torch", "transformers", "rich"} & set(loaded)


def test_a_file_that_is_no_tokenizer_is_a_data_error(spec, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    for backend in (BackendSpec(), GIGATOKEN):
        with pytest.raises(DataError, match=r"tokenizer\.json: "):
            replace(spec, tokenizer_file=file, backend=backend).build()
