"""Blends as datasets: megatron-core's order read back by megatron-core, columns row by row."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from megatron.core.datasets import helpers
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from llm_data.blending import Strategy
from llm_data.cli import main
from llm_data.edge.console.datasets import weights_and_datasets
from llm_data.edge.datasets import document_reader
from llm_data.edge.datasets.blending import blend, plan_blend
from llm_data.edge.datasets.merging import merge
from llm_data.edge.datasets.sample_dataset import open_sample_dataset, verify_samples
from llm_data.edge.datasets.splitting import equal_parts, split
from llm_data.errors import DataError, UsageError


def write_pair(stem, rows, dtype=np.int32):
    builder = IndexedDatasetBuilder(f"{stem}.bin", dtype=dtype)
    for row in rows:
        builder.add_document(torch.tensor(row), [len(row)])
    builder.finalize(f"{stem}.idx")


def rows_of(stem):
    dataset = IndexedDataset(str(stem))
    return [dataset[number].tolist() for number in range(len(dataset))]


@pytest.fixture
def pairs(tmp_path):
    """Three bare pairs of 40, 7 and 25 documents, of lengths of their own."""
    random = np.random.RandomState(1)
    made = {}
    for name, count, longest in (("a", 40, 3), ("b", 7, 30), ("c", 25, 9)):
        made[name] = [
            random.randint(0, 99, random.randint(1, longest)).tolist() for _ in range(count)
        ]
        write_pair(tmp_path / name, made[name])
    return made


@pytest.mark.parametrize("block_bytes", [8, 40, 1 << 22])
def test_a_blend_holds_the_documents_in_megatrons_order(tmp_path, pairs, monkeypatch, block_bytes):
    """Whether documents are larger than what is written at once or not."""
    monkeypatch.setattr(document_reader, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(document_reader, "_RELEASE_BYTES", 64)
    inputs, weights, size = [tmp_path / name for name in pairs], [0.5, 0.2, 0.3], 500
    plan = plan_blend(inputs, weights=weights, documents=size, without_manifest=True)
    blend(plan, output=tmp_path / "mix")

    datasets, samples = np.zeros(size, np.int16), np.zeros(size, np.int64)
    helpers.build_blending_indices(datasets, samples, weights, 3, size, False)
    every = list(pairs.values())
    wanted = [
        every[dataset][sample % len(every[dataset])]
        for dataset, sample in zip(datasets, samples, strict=True)
    ]
    assert rows_of(tmp_path / "mix") == wanted


def test_the_plan_tells_what_the_blend_then_holds(tmp_path, pairs):
    inputs = [tmp_path / name for name in pairs]
    plan = plan_blend(inputs, weights=[5, 2, 3], epochs=2.5, without_manifest=True)
    assert [share.documents for share in plan.shares] == [90, 36, 54]
    # 90 = 2 passes over 40 and the first 10; 36 = 5 over 7 and 1; 54 = 2 over 25 and 4.
    for share, (passes, rest), rows in zip(
        plan.shares, [(2, 10), (5, 1), (2, 4)], pairs.values(), strict=True
    ):
        assert share.tokens == passes * sum(map(len, rows)) + sum(map(len, rows[:rest]))
    blend(plan, output=tmp_path / "mix")
    assert sum(share.tokens for share in plan.shares) == sum(map(len, rows_of(tmp_path / "mix")))


def test_weights_by_tokens_give_shares_of_tokens(tmp_path, pairs):
    inputs = [tmp_path / name for name in pairs]
    plan = plan_blend(
        inputs, weights=[0.5, 0.2, 0.3], by="tokens", documents=20_000, without_manifest=True
    )
    for share, wanted in zip(plan.shares, (0.5, 0.2, 0.3), strict=True):
        assert share.token_share == pytest.approx(wanted, abs=0.002)


def test_an_interleaving_ends_with_the_first_or_the_last_dataset(tmp_path, pairs):
    """The order itself is tested against `datasets` in test_data_blending of the pure ring."""
    inputs = [tmp_path / name for name in pairs]
    for strategy, rounds in ((Strategy.INTERLEAVE_UNDER, 7), (Strategy.INTERLEAVE_OVER, 40)):
        plan = plan_blend(inputs, strategy=strategy, without_manifest=True)
        blend(plan, output=tmp_path / strategy.value)
        wanted = [rows[turn % len(rows)] for turn in range(rounds) for rows in pairs.values()]
        assert rows_of(tmp_path / strategy.value) == wanted


def test_a_shuffled_pass_holds_each_document_once(tmp_path, pairs):
    plan = plan_blend(
        [tmp_path / "a"], weights=[1.0], epochs=2, shuffle_seed=3, without_manifest=True
    )
    blend(plan, output=tmp_path / "mix")
    rows = rows_of(tmp_path / "mix")
    assert sorted(rows[:40]) == sorted(rows[40:]) == sorted(pairs["a"])
    assert rows[:40] != rows[40:]
    assert pairs["a"] not in (rows[:40], rows[40:])


def test_an_empty_dataset_is_named(tmp_path, pairs):
    write_pair(tmp_path / "empty", [])
    with pytest.raises(DataError, match="empty: holds no document"):
        plan_blend([tmp_path / "a", tmp_path / "empty"], weights=[1, 1], without_manifest=True)


TOKENIZER = {"digest": "d" * 64, "vocab_size": 500, "eos_token": "e", "eos_id": 1, "file": "t"}


def write_samples(prefix, sizes, *, start, capacity=None):
    """A sample dataset by megatron-core's builder and hand; packed rows if `capacity` is given.

    Ids are new for every sample, so that a row that lost its alignment shows.
    """
    rows, boundaries = [], []
    for row in sizes:
        ids, mask, labels, ends = [], [], [], [0]
        for ordinal, size in enumerate(row, 1):
            start += 1
            ids += [start] * size
            labels += [-100] * (size - 1) + [start]
            mask += [ordinal if capacity else 1] * size
            ends.append(len(ids))
        filling = (capacity or len(ids)) - len(ids)
        rows.append((ids + [0] * filling, mask + [0] * filling, labels + [-100] * filling))
        boundaries.append(ends)
    names = ("input_ids", "attention_mask", "labels")
    files = {}
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        dtype = np.int32 if name == "labels" else np.uint16
        stem = prefix.with_name(f"{prefix.name}_packed_{name}_document")
        write_pair(stem, column, dtype)
        files |= entries(stem, name)
    if capacity:
        stem = prefix.with_name(f"{prefix.name}_packed_cu_seqlens")
        write_pair(stem, boundaries, np.int32)
        files |= entries(stem, "cu_seqlens")
    samples = sum(map(len, sizes))
    manifest = {
        "format": "sample-dataset",
        "version": 1,
        "task": "sft",
        "columns": [
            {"name": name, "dtype": "int32" if name == "labels" else "uint16"} for name in names
        ],
        "num_rows": len(rows),
        "num_samples": samples,
        "num_tokens": sum(map(sum, sizes)),
        "num_loss_tokens": samples,
        "packed": capacity is not None,
        "seq_length": capacity,
        "pad_id": 0 if capacity else None,
        "template": {"name": "chatml", "digest": "c" * 64},
        "options": {"thinking": "keep"},
        "tokenizer": TOKENIZER,
        "sources": [{"path": str(prefix), "files": 1, "bytes": 9, "digest": f"{start:064}"}],
        "drops": {"empty": 2},
        "notes": {"truncated": 1},
        "on_error": "stop",
        "files": files,
        "created_by": "a test",
    }
    prefix.with_name(f"{prefix.name}_packed.json").write_text(json.dumps(manifest))


def entries(stem, name):
    import hashlib

    found = {}
    for end in ("bin", "idx"):
        data = stem.with_name(f"{stem.name}.{end}").read_bytes()
        found[f"{name}.{end}"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return found


@pytest.fixture(params=[None, 12], ids=["samples", "packed"])
def samples(request, tmp_path):
    """Two sample datasets, one sample a row or packed."""
    capacity = request.param
    sizes = [[4, 3, 5], [2], [6, 6], [7, 2], [3, 3, 3]]
    if capacity is None:
        sizes = [[size] for row in sizes for size in row]
    write_samples(tmp_path / "a", sizes, start=10, capacity=capacity)
    write_samples(tmp_path / "b", sizes[::-1][:-1], start=100, capacity=capacity)
    for name in ("a", "b"):
        verify_samples(tmp_path / name)
    return tmp_path


def whole_rows(dataset):
    """Every row with all its columns and boundaries."""
    return [
        (
            *(tuple(column.tolist()) for column in dataset.row(number).values()),
            tuple(dataset.boundaries(number).tolist()),
        )
        for number in range(len(dataset))
    ]


def test_merged_samples_verify_with_sums_of_their_counts(samples):
    merge([samples / "a", samples / "b"], output=samples / "ab")
    merged = verify_samples(samples / "ab")
    parts = [open_sample_dataset(samples / name) for name in ("a", "b")]
    assert whole_rows(merged) == whole_rows(parts[0]) + whole_rows(parts[1])
    for name in ("num_rows", "num_samples", "num_tokens", "num_loss_tokens"):
        wanted = sum(getattr(part.manifest, name) for part in parts)
        assert getattr(merged.manifest, name) == wanted
    assert (merged.manifest.drops, merged.manifest.notes) == ({"empty": 4}, {"truncated": 2})


def test_split_samples_stay_aligned_in_all_columns(samples):
    split(samples / "a", output=samples / "cut", parts=equal_parts(2), shuffle_seed=4)
    parts = [verify_samples(samples / f"cut_part{number}") for number in (0, 1)]
    every = whole_rows(open_sample_dataset(samples / "a"))
    found = [row for part in parts for row in whole_rows(part)]
    assert sorted(found) == sorted(every)
    assert found != every
    before = open_sample_dataset(samples / "a").manifest
    for name in ("num_samples", "num_tokens", "num_loss_tokens"):
        assert sum(getattr(part.manifest, name) for part in parts) == getattr(before, name)


def test_blended_samples_stay_aligned_in_all_columns(samples):
    plan = plan_blend([samples / "a", samples / "b"], weights=[2, 1], documents=30)
    blend(plan, output=samples / "mix")
    every = [whole_rows(open_sample_dataset(samples / name)) for name in ("a", "b")]
    found = whole_rows(verify_samples(samples / "mix"))
    datasets, numbers = np.zeros(30, np.int16), np.zeros(30, np.int64)
    helpers.build_blending_indices(datasets, numbers, [2 / 3, 1 / 3], 2, 30, False)
    assert found == [
        every[dataset][number % len(every[dataset])]
        for dataset, number in zip(datasets, numbers, strict=True)
    ]


def test_tokens_and_samples_do_not_mix(tmp_path):
    write_samples(tmp_path / "a", [[4], [2]], start=1)
    write_samples(tmp_path / "packed", [[4], [2]], start=1, capacity=9)
    write_pair(tmp_path / "b", [[1]])
    with pytest.raises(DataError, match=r"b: kind no manifest.*a has sample dataset"):
        plan_blend([tmp_path / "a", tmp_path / "b"], weights=[1, 1])
    with pytest.raises(DataError, match=r"packed: packed True, but .*a has False"):
        plan_blend([tmp_path / "a", tmp_path / "packed"], weights=[1, 1])


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_dry_run_prints_the_shares_and_writes_nothing(tmp_path, pairs):
    a, b = tmp_path / "a", tmp_path / "b"
    words = ("0.7", a, "0.3", b, "--documents", "100", "--without-manifest", "--dry-run")
    result = run("blend", *words)
    assert result.exit_code == 0
    one, two = result.output.splitlines()
    assert one.split()[1:5] == ["70", "documents", "(1.75", "times"]
    assert two.split()[1:5] == ["30", "documents", "(4.29", "times"]
    assert not list(tmp_path.glob("mix*"))


def test_the_predecessors_options_are_understood(tmp_path, pairs):
    words = (tmp_path / "a", tmp_path / "c", "--mix-strategy", "interleave_under")
    words += ("--interleave-probs", "0.1,0.9", "--without-manifest", "--output-prefix")
    result = run("blend", *words, tmp_path / "mix")
    assert result.exit_code == 0, result.output
    plan = plan_blend(
        [tmp_path / "a", tmp_path / "c"],
        weights=[0.1, 0.9],
        strategy=Strategy.INTERLEAVE_UNDER,
        without_manifest=True,
    )
    assert len(rows_of(tmp_path / "mix")) == plan.num_documents

    words = ("--input", tmp_path, "--merge-group-keys", "a", "c", "--output-prefix")
    result = run("merge", *words, tmp_path / "all")
    assert result.exit_code == 0, result.output
    assert rows_of(tmp_path / "all_c") == pairs["c"]


def test_a_split_from_the_command_line(tmp_path, pairs):
    words = (tmp_path / "a", "--output", tmp_path / "cut", "--without-manifest")
    result = run("split", *words, "--ratios", "3,1")
    assert result.exit_code == 0, result.output
    assert rows_of(tmp_path / "cut_train") + rows_of(tmp_path / "cut_valid") == pairs["a"]
    assert run("split", *words).exit_code == 2


def test_weights_stand_before_every_dataset_or_none():
    assert weights_and_datasets(["0.7", "a", "3e-1", "b"]) == ([0.7, 0.3], ["a", "b"])
    assert weights_and_datasets(["a", "./7"]) == (None, ["a", "./7"])
    for words in (["0.7", "a", "b"], ["a", "0.3"], ["0.7", "0.3", "a", "b"]):
        with pytest.raises(UsageError, match="want a weight before every dataset"):
            weights_and_datasets(words)
