import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import nltk
import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset
from nltk.tokenize import punkt
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from llm_data.config import OnError, PreprocessConfig
from llm_data.edge.datasets.token_dataset import open_token_dataset, verify
from llm_data.edge.runs.pipeline import preprocess
from llm_data.errors import DataError, UsageError

ENDS = (".bin", ".idx", ".json")


def outputs(stem: Path) -> list[bytes]:
    return [stem.with_name(stem.name + end).read_bytes() for end in ENDS]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def config(corpus, tokenizer, tmp_path) -> PreprocessConfig:
    return PreprocessConfig(
        inputs=[corpus], tokenizer=tokenizer, output=tmp_path / "out" / "train", workers=1
    )


def lines(path: Path, *records: object) -> Path:
    """A jsonl file; bytes are written as they are."""
    raw = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in records]
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    return path


@pytest.mark.parametrize(("dtype", "megatron_dtype"), [("auto", np.uint16), ("int32", np.int32)])
def test_megatron_reads_the_ids_transformers_gives(
    config, corpus, tokenizer, dtype, megatron_dtype
):
    preprocess(replace(config, append_eod=True, dtype=dtype))
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    reference = AutoTokenizer.from_pretrained(tokenizer)
    wanted = [[*ids, reference.eos_token_id] for ids in reference(texts).input_ids]
    dataset = IndexedDataset(str(config.stem))
    assert dataset.index.dtype == megatron_dtype
    assert [dataset[i].tolist() for i in range(len(dataset))] == wanted
    assert dataset.document_indices.tolist() == list(range(len(texts) + 1))


def test_manifest_says_what_was_made(config, corpus, tokenizer):
    result = preprocess(replace(config, append_eod=True))
    manifest = result.manifest
    dataset = verify(config.stem)
    assert (manifest.num_documents, manifest.num_tokens) == (3000, len(dataset.tokens))
    assert (
        manifest.tokenizer.vocab_size
        == Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab_size()
    )
    assert (manifest.tokenizer.eos_token, manifest.eod_id) == ("<|endoftext|>", 0)
    assert manifest.sources[0].bytes == corpus.stat().st_size
    assert manifest.drops == {}


def test_workers_do_not_change_a_byte(config):
    preprocess(config)
    several = replace(config, output=config.output.with_name("several"), workers=3)
    preprocess(several)
    assert outputs(several.stem) == outputs(config.stem)


def test_chunks_do_not_change_a_byte(config):
    preprocess(config)
    small = replace(config, output=config.output.with_name("small"), chunk_bytes=1)
    preprocess(small)
    assert outputs(small.stem) == outputs(config.stem)


def test_nothing_but_the_dataset_is_left(config):
    preprocess(config)
    assert names(config.stem.parent) == [f"train_text_document{end}" for end in sorted(ENDS)]


def test_a_finished_run_is_not_done_again(config):
    first = preprocess(config)
    before = [os.stat(f"{config.stem}{end}").st_mtime_ns for end in ENDS]
    again = preprocess(replace(config, workers=2, chunk_bytes=7))
    assert (first.already_done, again.already_done) == (False, True)
    assert again.manifest == first.manifest
    assert [os.stat(f"{config.stem}{end}").st_mtime_ns for end in ENDS] == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"append_eod": True}, "eod id was None, is 0"),
        ({"dtype": "int32"}, "dtype was uint16, is int32"),
        ({"on_error": OnError.SKIP}, "on-error was stop, is skip"),
        ({"tokenizer": "bytes"}, "tokenizer was "),
        ({"inputs": "longer"}, "corpus.jsonl changed (now 1 files, "),
        ({"inputs": "twice"}, "inputs were 1, are 2"),
    ],
)
def test_another_runs_result_is_kept_unless_told(
    config, corpus, bytes_tokenizer, tmp_path, change, says
):
    preprocess(config)
    kept = outputs(config.stem)
    longer = tmp_path / "corpus.jsonl"
    longer.write_bytes(corpus.read_bytes() + b'{"text": "more"}\n')
    values = {"bytes": bytes_tokenizer, "longer": [longer], "twice": [corpus, corpus]}
    other = replace(
        config, **{k: values.get(v, v) if isinstance(v, str) else v for k, v in change.items()}
    )
    with pytest.raises(DataError) as error:
        preprocess(other)
    assert says in str(error.value)
    assert "--overwrite" in str(error.value)
    assert outputs(config.stem) == kept
    preprocess(replace(other, overwrite=True))
    assert outputs(config.stem) != kept
    verify(config.stem)


def test_a_damaged_result_is_not_called_done(config):
    preprocess(config)
    with open(f"{config.stem}.bin", "r+b") as stream:
        stream.truncate(10)
    with pytest.raises(DataError, match="10 bytes, want"):
        preprocess(config)
    preprocess(replace(config, overwrite=True))
    verify(config.stem)


def test_a_pair_of_unknown_origin_is_not_overwritten(config):
    config.stem.parent.mkdir()
    Path(f"{config.stem}.bin").write_bytes(b"precious")
    with pytest.raises(DataError, match="exists without a manifest"):
        preprocess(config)
    assert Path(f"{config.stem}.bin").read_bytes() == b"precious"


def test_truncation_in_the_tokenizer_does_not_cut_documents(config, corpus, tokenizer, tmp_path):
    cutting = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    cutting.enable_truncation(3)
    cutting.enable_padding(length=8)
    cutting.save(str(tmp_path / "tokenizer.json"))
    preprocess(config)
    other = replace(config, tokenizer=tmp_path / "tokenizer.json", output=tmp_path / "cut")
    preprocess(other)
    assert outputs(other.stem)[0] == outputs(config.stem)[0]


BAD = {
    b'{"text": "a"': ("invalid_json", "not JSON"),
    b'{"text": "\xff"}': ("invalid_utf8", "not UTF-8"),
    b'{"content": "a", "id": 2}': ("missing_key", "no key 'text'; the record has content, id"),
    b'{"text": 5}': ("wrong_type", "'text' is a number, want a string"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("workers", [1, 2])
def test_stopping_names_file_and_line_and_leaves_nothing(config, tmp_path, bad, workers):
    path = lines(tmp_path / "bad.jsonl", {"text": "good"}, b"", bad, {"text": "good"})
    with pytest.raises(DataError) as error:
        preprocess(replace(config, inputs=[path], workers=workers))
    assert f"{path}: line 3: {BAD[bad][1]}" in str(error.value)
    assert "--on-error skip" in str(error.value)
    assert names(config.stem.parent) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_skipping_counts_and_quarantines_every_bad_line(config, tmp_path, workers):
    path = lines(tmp_path / "bad.jsonl", {"text": "a"}, *BAD, {"text": ""}, {"text": "b"})
    result = preprocess(replace(config, inputs=[path], on_error=OnError.SKIP, workers=workers))
    assert result.manifest.num_documents == 2
    assert result.manifest.drops == {"empty": 1, **{reason: 1 for reason, _ in BAD.values()}}
    rejects = [
        json.loads(line) for line in Path(f"{config.stem}.rejects.jsonl").read_text().splitlines()
    ]
    assert [(r["unit"], r["number"], r["reason"]) for r in rejects] == [
        ("line", number, reason) for number, (reason, _) in enumerate(BAD.values(), start=2)
    ]
    assert [r["raw"] for r in rejects] == [bad.decode(errors="backslashreplace") for bad in BAD]


def test_a_damaged_file_is_skipped_and_the_next_one_read(config, corpus, tmp_path):
    broken = tmp_path / "a.jsonl.gz"
    broken.write_bytes(b"\x1f\x8b\x08\x00rubbish")
    good = lines(tmp_path / "b.jsonl", {"text": "good"})
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: line 1: the file is damaged: Compressed"):
        preprocess(replace(config, inputs=[broken, good]))
    result = preprocess(replace(config, inputs=[broken, good], on_error=OnError.SKIP))
    assert (result.manifest.num_documents, result.manifest.drops) == (1, {"broken_file": 1})


def test_only_empty_input_is_an_error_and_leaves_nothing(config, tmp_path):
    (tmp_path / "a.txt").touch()
    path = lines(tmp_path / "b.jsonl", {"text": ""})
    with pytest.raises(DataError, match="no documents in 2 files: 2 empty"):
        preprocess(replace(config, inputs=[tmp_path / "a.txt", path]))
    assert names(config.stem.parent) == []


def test_input_without_one_good_record_is_an_error_that_quotes_the_first_bad_one(config, tmp_path):
    empty = lines(tmp_path / "a.jsonl", {"text": ""})
    bad = lines(tmp_path / "b.jsonl", {"text": ""}, b"{broken", {"txt": "x"})
    told = (
        r"no documents in 2 files: 2 empty, 1 invalid_json, 1 missing_key; "
        r"the first error: .*b\.jsonl: line 2: not JSON: "
    )
    with pytest.raises(DataError, match=told):
        preprocess(replace(config, inputs=[empty, bad], on_error=OnError.SKIP))
    assert names(config.stem.parent) == []
    with pytest.raises(DataError, match=r"^no documents in .*a\.jsonl: 1 empty$"):
        preprocess(replace(config, inputs=[empty]))


def test_appending_needs_a_token_to_append(config, bytes_tokenizer):
    (bytes_tokenizer / "tokenizer_config.json").unlink()
    wanting = replace(config, tokenizer=bytes_tokenizer, append_eod=True)
    with pytest.raises(UsageError, match="--eos-token names one"):
        preprocess(wanting)
    with pytest.raises(DataError, match=r"'</s>' is not in the vocabulary"):
        preprocess(replace(wanting, eos_token="</s>"))
    preprocess(replace(wanting, eos_token="<|pad|>"))
    dataset = open_token_dataset(config.stem)
    assert {int(dataset.document(i)[-1]) for i in range(len(dataset))} == {1}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tokenizer_that_cannot_be_loaded_is_named(config, tmp_path, workers):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        preprocess(replace(config, tokenizer=tmp_path, workers=workers))


def test_a_missing_tokenizer_says_what_is_there(config, tmp_path):
    with pytest.raises(UsageError, match="no such tokenizer"):
        preprocess(replace(config, tokenizer=tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "tokenizer.model").touch()
    with pytest.raises(DataError, match=r"found tokenizer\.model; transformers converts"):
        preprocess(replace(config, tokenizer=tmp_path / "empty"))


def test_input_that_changes_while_it_is_read_is_noticed(config, corpus, tmp_path):
    moving = tmp_path / "corpus.jsonl"
    moving.write_bytes(corpus.read_bytes())

    class Meddler:
        def update(self, *, done, total, note):
            os.utime(moving, ns=(1, 1))

        def say(self, text):
            pass

    with pytest.raises(DataError, match="changed while it was read"):
        preprocess(replace(config, inputs=[moving]), progress=Meddler())
    assert not Path(f"{config.stem}.bin").exists()


def test_a_full_disk_leaves_nothing_final_and_can_go_on(config):
    """The limit stands in for the disk: a write beyond 256 KiB fails with an OSError."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, limits[1]))
    try:
        with pytest.raises(DataError, match=r"\.parts: File too large; what is done is kept"):
            preprocess(replace(config, chunk_bytes=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(config.stem.parent) == ["train_text_document.parts"]
    assert preprocess(config).resumed_documents > 0
    verify(config.stem)


def test_output_inside_the_input_folder_stays_out_of_it(config, corpus, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(corpus.read_bytes())
    inside = replace(config, inputs=[folder], output=folder / "train")
    preprocess(inside)
    assert preprocess(inside).already_done


def test_sentences_are_sequences_of_a_document(config, tokenizer, tmp_path, monkeypatch):
    """Names and layout as Megatron's --split-sentences; its own reader tells the documents."""
    data = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    data.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    punkt.save_punkt_params(punkt.PunktTrainer("Ka lo. Mi ter. Son.").get_params(), dir=str(data))
    path = lines(tmp_path / "s.jsonl", {"text": "Ka lo. Mi ter."}, {"text": "Son"})
    split = replace(config, inputs=[path], split_sentences=True, append_eod=True)
    manifest = preprocess(split).manifest
    dataset = IndexedDataset(str(split.output.with_name("train_text_sentence")))
    decode = AutoTokenizer.from_pretrained(tokenizer).decode
    sentences = [decode(dataset[i]) for i in range(len(dataset))]
    assert sentences == ["Ka lo.", "Mi ter.<|endoftext|>", "Son<|endoftext|>"]
    assert dataset.document_indices.tolist() == [0, 2, 3]
    assert (manifest.level, manifest.options["language"]) == ("sentence", "english")
    with pytest.raises(DataError, match="keep-newlines was False, is True"):
        preprocess(replace(split, keep_newlines=True))
