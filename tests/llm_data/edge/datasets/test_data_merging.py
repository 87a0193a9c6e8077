"""Merging against megatron-core's `add_index`, and against one run over all sources."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from llm_data.config import PreprocessConfig, Task
from llm_data.edge.datasets import derived_dataset
from llm_data.edge.datasets.blending import blend, plan_blend
from llm_data.edge.datasets.merging import merge, merge_groups
from llm_data.edge.datasets.sample_dataset import verify_samples
from llm_data.edge.datasets.token_dataset import TokenDatasetWriter, open_token_dataset, verify
from llm_data.edge.runs.pipeline import preprocess
from llm_data.edge.runs.run_folder import RunFolder
from llm_data.errors import DataError, FormatError, UsageError

DOCUMENTS = st.lists(
    st.lists(st.lists(st.integers(0, 250), max_size=5), max_size=3), min_size=0, max_size=6
)


def write_pair(stem, documents, dtype=np.uint16):
    """A pair by megatron-core's builder; documents and sequences may be empty."""
    builder = IndexedDatasetBuilder(f"{stem}.bin", dtype=dtype)
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(f"{stem}.idx")


def megatrons_merge(stem, inputs, dtype):
    builder = IndexedDatasetBuilder(f"{stem}.bin", dtype=dtype)
    for prefix in inputs:
        builder.add_index(str(prefix))
    builder.finalize(f"{stem}.idx")


def assert_same_pair(one, two):
    for end in ("bin", "idx"):
        assert Path(f"{one}.{end}").read_bytes() == Path(f"{two}.{end}").read_bytes()


@pytest.fixture
def make(tmp_path, tokenizer):
    """Preprocess texts into a dataset with a manifest."""

    def made(name, texts, **options):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text, "b": text}) + "\n" for text in texts))
        options = {"tokenizer": tokenizer, **options}
        return preprocess(PreprocessConfig(inputs=[path], output=tmp_path / name, **options))

    return made


@settings(max_examples=8, deadline=None)
@given(parts=st.lists(DOCUMENTS, min_size=1, max_size=4), dtype=st.sampled_from(["u2", "i4", "i8"]))
def test_merged_pairs_are_byte_identical_to_megatrons(tmp_path_factory, parts, dtype):
    folder = tmp_path_factory.mktemp("merge")
    stems = [folder / f"part{number}" for number in range(len(parts))]
    for stem, documents in zip(stems, parts, strict=True):
        write_pair(stem, documents, np.dtype(dtype).type)
    megatrons_merge(folder / "theirs", stems, np.dtype(dtype).type)
    merge(stems, output=folder / "ours", without_manifest=True)
    assert_same_pair(folder / "ours", folder / "theirs")
    assert not (folder / "ours.json").exists()


def test_merging_runs_gives_every_byte_of_one_run_over_all_inputs(tmp_path, tokenizer, make):
    make("a", ["one two", "", "three"], append_eod=True)
    make("b", ["four", "five six"], append_eod=True)
    both = PreprocessConfig(
        inputs=[tmp_path / "a.jsonl", tmp_path / "b.jsonl"],
        tokenizer=tokenizer,
        output=tmp_path / "both",
        append_eod=True,
    )
    preprocess(both)
    result = merge([tmp_path / "a", tmp_path / "b"], output=tmp_path / "ab")
    assert (result.num_documents, result.already_done) == (4, False)
    assert_same_pair(tmp_path / "ab_text_document", tmp_path / "both_text_document")
    ours, theirs = (tmp_path / f"{name}_text_document.json" for name in ("ab", "both"))
    assert ours.read_bytes() == theirs.read_bytes()
    verify(tmp_path / "ab")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int32"}, "dtype int32, but .*a has uint16"),
        ({"append_eod": True}, "append_eod True, but .*a has False"),
        ({"key": "b"}, "key b, but .*a has text"),
    ],
)
def test_datasets_that_differ_are_refused_with_both_values(tmp_path, make, options, words):
    make("a", ["one"])
    make("b", ["two"], **options)
    with pytest.raises(DataError, match=words):
        merge([tmp_path / "a", tmp_path / "b"], output=tmp_path / "ab")
    assert not list(tmp_path.glob("ab*"))


@pytest.fixture
def make_chats(tmp_path, tokenizer):
    """Preprocess one conversation into samples, from a record of the shape that is asked for."""
    records = {
        "alpaca": {"instruction": "one", "output": "two"},
        "openai": {
            "messages": [
                {"role": "user", "content": "three"},
                {"role": "assistant", "content": "four"},
            ]
        },
    }

    def made(name, shape, **options):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(records[shape]) + "\n")
        options = {"template": "chatml", "tokenizer": tokenizer, **options}
        config = PreprocessConfig(inputs=[path], output=tmp_path / name, task=Task.SFT, **options)
        return preprocess(config).manifest

    return made


def test_samples_read_from_other_formats_are_merged_and_blended(tmp_path, make_chats):
    one = make_chats("a", "alpaca", map_keys={"prompt": "instruction"})
    two = make_chats("b", "openai", seq_length=99, too_long="truncate")
    merge([tmp_path / "a", tmp_path / "b"], output=tmp_path / "ab")
    blend(plan_blend([tmp_path / "b", tmp_path / "a"], weights=[1, 1]), output=tmp_path / "ba")
    merged, blended = (verify_samples(tmp_path / name).manifest for name in ("ab", "ba"))
    assert merged.num_tokens == blended.num_tokens == one.num_tokens + two.num_tokens
    assert merged.options["format"] == "alpaca | openai"
    assert blended.options["format"] == "openai | alpaca"
    assert merged.options["map_keys"] == '{"prompt": "instruction"} | {}'
    assert merged.options["too_long"] == "truncate"
    assert merged.options["thinking"] == one.options["thinking"]
    # One of them has no longest row.
    assert merged.seq_length is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"thinking": "off"}, "b: option thinking off, but .*a has keep; want"),
        ({"template": "llama3"}, r"b: template llama3 [0-9a-f]{12}, but .*a has chatml "),
    ],
)
def test_samples_that_learn_something_else_are_refused(tmp_path, make_chats, options, words):
    make_chats("a", "alpaca")
    make_chats("b", "alpaca", **options)
    with pytest.raises(DataError, match=words):
        merge([tmp_path / "a", tmp_path / "b"], output=tmp_path / "ab")


def test_another_tokenizer_is_refused_by_its_digest(tmp_path, make, bytes_tokenizer):
    a, b = make("a", ["one"]), make("b", ["two"], tokenizer=bytes_tokenizer)
    one, two = (result.manifest.tokenizer.digest[:16] for result in (a, b))
    with pytest.raises(DataError, match=f"b: tokenizer digest {two}, but .*a has {one}"):
        merge([tmp_path / "a", tmp_path / "b"], output=tmp_path / "ab")


def test_a_pair_without_manifest_is_merged_only_when_asked(tmp_path, make):
    make("a", ["one"])
    write_pair(tmp_path / "b", [[[1, 2]]])
    inputs = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(DataError, match=r"b: kind no manifest .--without-manifest"):
        merge(inputs, output=tmp_path / "ab")
    merge(inputs, output=tmp_path / "ab", without_manifest=True)
    assert len(open_token_dataset(tmp_path / "ab")) == 2


def test_damage_inside_an_input_is_found_while_merging(tmp_path, make):
    make("a", ["one two three"])
    make("b", ["four five six"])
    path = tmp_path / "b_text_document.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"b_text_document.bin: sha256 .* its manifest wants"):
        merge([tmp_path / "a", tmp_path / "b"], output=tmp_path / "ab")
    assert not list(tmp_path.glob("ab*"))


def test_what_is_there_is_kept_unless_it_is_the_same_or_overwritten(tmp_path, make):
    for name in ("a", "b", "c"):
        make(name, [name])
    prefixes = {name: tmp_path / name for name in ("a", "b", "c")}
    merge([prefixes["a"], prefixes["b"]], output=tmp_path / "out")
    before = (tmp_path / "out_text_document.bin").stat()
    assert merge([prefixes["a"], prefixes["b"]], output=tmp_path / "out").already_done
    assert (tmp_path / "out_text_document.bin").stat() == before
    with pytest.raises(DataError, match="--overwrite"):
        merge([prefixes["a"], prefixes["c"]], output=tmp_path / "out")
    merge([prefixes["a"], prefixes["c"]], output=tmp_path / "out", overwrite=True)
    whole = verify(tmp_path / "out")
    assert whole.document(1).tolist() == verify(prefixes["c"]).document(0).tolist()
    assert not list(tmp_path.glob("out*.parts"))


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, make):
    """The limit stands in for the disk: a write beyond 4 KiB fails with an OSError."""
    make("a", ["one two three " * 500])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 10, limits[1]))
    try:
        told = r"ab_text_document\.parts: File too large; nothing is left of it"
        with pytest.raises(DataError, match=told):
            merge([tmp_path / "a"], output=tmp_path / "ab")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("ab*"))


def test_a_merge_killed_while_it_wrote_begins_again(tmp_path, make):
    make("a", ["one"])
    make("b", ["two"])
    # What SIGKILL leaves: a half-written spool, no manifest.
    spool = tmp_path / "ab_text_document.parts/column-tokens"
    spool.mkdir(parents=True)
    for name in ("tokens.bin", "lengths.int32", "documents.int32"):
        (spool / name).write_bytes(b"torn")
    merge([tmp_path / "a", tmp_path / "b"], output=tmp_path / "ab")
    assert len(verify(tmp_path / "ab")) == 2
    assert not list(tmp_path.glob("ab*.parts"))


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_merge_killed_while_it_published_only_publishes(tmp_path, make, monkeypatch, renames):
    make("a", ["one"])
    make("b", ["two"])
    inputs = [tmp_path / "a", tmp_path / "b"]

    class Killed(BaseException):
        pass

    done, rename = [], Path.replace

    def replace_until_killed(self, target):
        if self.parent.name == "column-tokens" or self.name == "manifest.json":
            if len(done) == renames:
                raise Killed
            done.append(self)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "seal", lambda folder, data: seal(folder, data))
        patch.setattr(Path, "replace", replace_until_killed)
        with pytest.raises(Killed):
            merge(inputs, output=tmp_path / "ab")
    assert not (tmp_path / "ab_text_document.json").exists()
    monkeypatch.setattr(derived_dataset, "_write", None)
    assert not merge(inputs, output=tmp_path / "ab").already_done
    assert len(verify(tmp_path / "ab")) == 2


def seal(folder, data):
    """As RunFolder does, with a write of its own: the test counts renames."""
    (folder.path / "manifest.json").write_bytes(data)


def test_an_unfinished_preprocessing_run_is_kept(tmp_path, make):
    make("a", ["one"])
    parts = tmp_path / "ab_text_document.parts"
    parts.mkdir()
    (parts / "progress.json").write_text("{}")
    with pytest.raises(DataError, match="unfinished preprocessing run"):
        merge([tmp_path / "a"], output=tmp_path / "ab")
    assert (parts / "progress.json").exists()
    merge([tmp_path / "a"], output=tmp_path / "ab", overwrite=True)
    verify(tmp_path / "ab")


def test_an_input_is_never_the_output(tmp_path, make):
    make("a", ["one"])
    with pytest.raises(UsageError, match="would replace it"):
        merge([tmp_path / "a"], output=tmp_path / "a", overwrite=True)
    verify(tmp_path / "a")


def test_groups_are_merged_as_mindspeed_llm_does(tmp_path):
    """Every pair with the key in its name, sorted by name, to PREFIX_KEY."""
    for number, tokens in (("1", [5]), ("0", [4])):
        for column in ("input_ids", "labels"):
            write_pair(tmp_path / f"d_{number}_packed_{column}_document", [[tokens]], np.int32)
    merge_groups(
        tmp_path, ["packed_input_ids_document", "packed_labels_document"], output=tmp_path / "all"
    )
    for column in ("input_ids", "labels"):
        stem = tmp_path / f"all_packed_{column}_document"
        parts = [tmp_path / f"d_{number}_packed_{column}_document" for number in (0, 1)]
        megatrons_merge(tmp_path / "theirs", parts, np.int32)
        assert_same_pair(stem, tmp_path / "theirs")
    with pytest.raises(DataError, match=r"no .idx file has .chosen. in its name; found all_packed"):
        merge_groups(tmp_path, ["chosen"], output=tmp_path / "x")


def test_thousands_of_inputs_need_few_open_files(tmp_path):
    count = 1500
    write_pair(tmp_path / "first", [[[1, 2]], [[3]]])
    stems = [tmp_path / f"part{number}" for number in range(count)]
    for stem in stems:
        for end in ("bin", "idx"):
            shutil.copy(tmp_path / f"first.{end}", f"{stem}.{end}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 400), hard))
    try:
        merge(stems, output=tmp_path / "all", without_manifest=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    dataset = verify(tmp_path / "all", index_only=True)
    assert dataset.tokens.tolist() == [1, 2, 3] * count


def peak_mib(tmp_path, inputs):
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from llm_data.edge.datasets.merging import merge\n"
        "merge([Path(p) for p in sys.argv[2:]], output=Path(sys.argv[1]), without_manifest=True)\n"
        # Not ru_maxrss: a child begins with its parent's.
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "out", *inputs]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for path in tmp_path.glob("out*"):
        path.unlink()
    return int(done.stdout) / 1024


def test_memory_does_not_grow_with_the_data(tmp_path):
    """200 MB of tokens in 2 million documents take no more than 1 MB does."""
    for name, count in (("small", 10_000), ("large", 1_000_000)):
        tokens = np.zeros(50, dtype=np.uint16)
        with TokenDatasetWriter(tmp_path / name, dtype=tokens.dtype) as writer:
            writer._spool.append(
                tokens.tobytes() * count,
                lengths=np.full(count, 50, "<i4").tobytes(),
                sizes=np.ones(count, "<i4").tobytes(),
            )
    small = peak_mib(tmp_path, [tmp_path / "small"] * 2)
    large = peak_mib(tmp_path, [tmp_path / "large"] * 2)
    # Two blocks of 32 MiB before pages are given back, and the tables of a chunk.
    assert large < small + 64
