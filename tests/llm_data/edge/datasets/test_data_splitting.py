"""Splits: every document once, shares as asked, rows aligned; read back by megatron-core."""

import json
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from llm_data.config import PreprocessConfig
from llm_data.edge.datasets.splitting import equal_parts, named_parts, split
from llm_data.edge.datasets.token_dataset import open_token_dataset, verify
from llm_data.edge.runs.pipeline import preprocess
from llm_data.errors import DataError, UsageError


@pytest.fixture
def whole(tmp_path):
    """300 documents of 1 to 30 tokens that name their document, some in two sequences."""
    random = np.random.RandomState(0)
    builder = IndexedDatasetBuilder(f"{tmp_path}/whole.bin", dtype=np.int32)
    for number in range(300):
        length = random.randint(1, 31)
        lengths = [length] if length < 20 else [5, length - 5]
        builder.add_document(torch.full((length,), number), lengths)
    builder.finalize(f"{tmp_path}/whole.idx")
    return tmp_path / "whole"


def documents_of(stem):
    """(document's name, lengths of its sequences), as megatron-core reads them."""
    dataset = IndexedDataset(str(stem))
    edges = dataset.document_indices
    found = []
    for first, last in pairwise(edges):
        sequences = [dataset[number] for number in range(first, last)]
        (name,) = {int(token) for sequence in sequences for token in sequence}
        found.append((name, [len(sequence) for sequence in sequences]))
    return found


@pytest.mark.parametrize("by", ["documents", "tokens"])
@pytest.mark.parametrize("seed", [None, 7], ids=["stretches", "random"])
def test_every_document_is_in_exactly_one_part_in_its_own_order(tmp_path, whole, by, seed):
    parts = named_parts([0.7, 0.2, 0.1])
    split(
        whole,
        output=tmp_path / "out",
        parts=parts,
        by=by,
        shuffle_seed=seed,
        without_manifest=True,
    )
    every = documents_of(whole)
    found = {name: documents_of(tmp_path / f"out_{name}") for name in ("train", "valid", "test")}
    names = {name: [document for document, _ in part] for name, part in found.items()}
    assert all(part == sorted(part) for part in names.values())
    assert sorted(chain(*found.values())) == every
    if seed is None:
        assert list(chain(*found.values())) == every
    else:
        assert names["train"] != list(range(len(names["train"])))
    weights = {
        name: len(part) if by == "documents" else sum(sum(lengths) for _, lengths in part)
        for name, part in found.items()
    }
    total = sum(weights.values())
    # No document is cut: half the longest one at each edge.
    slack = 0.5 if by == "documents" else 15
    for part in parts:
        assert abs(weights[part.name] - part.ratio * total) <= 2 * slack


def test_another_seed_is_another_split_and_the_same_seed_the_same(tmp_path, whole):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        split(
            whole,
            output=tmp_path / name,
            parts=equal_parts(2),
            shuffle_seed=seed,
            without_manifest=True,
        )
    a, b, c = (documents_of(tmp_path / f"{name}_part0") for name in "abc")
    assert a == b
    assert a != c


def test_a_random_split_draws_evenly_from_the_whole(tmp_path, whole):
    """Of the 300 documents each third gives a half to a half, within 3.3 standard deviations."""
    split(whole, output=tmp_path / "o", parts=equal_parts(2), shuffle_seed=5, without_manifest=True)
    thirds = Counter(name // 100 for name, _ in documents_of(tmp_path / "o_part0"))
    # Hypergeometric: 100 of 300 documents, 150 chosen.
    deviation = np.sqrt(150 * (1 / 3) * (2 / 3) * (150 / 299))
    assert all(abs(thirds[third] - 50) < 3.3 * deviation for third in range(3))


@pytest.fixture
def described(tmp_path, tokenizer):
    """A dataset with a manifest."""
    texts = [f"text number {number}" for number in range(40)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, ""]))
    config = PreprocessConfig(inputs=[path], tokenizer=tokenizer, output=tmp_path / "all")
    preprocess(config)
    return tmp_path / "all"


def test_parts_verify_and_name_where_they_came_from(tmp_path, described):
    done = split(described, output=tmp_path / "cut", parts=named_parts([3, 1]), shuffle_seed=1)
    manifests = [
        verify(tmp_path / f"cut_{name}_text_document").manifest for name in ("train", "valid")
    ]
    assert [manifest.num_documents for manifest in manifests] == [30, 10]
    before = open_token_dataset(described).manifest
    assert all(manifest.tokenizer == before.tokenizer for manifest in manifests)
    assert [manifest.sources[0].path for manifest in manifests] == [str(described)] * 2
    assert manifests[0].sources[0].digest != manifests[1].sources[0].digest
    assert all(manifest.drops == {} for manifest in manifests)
    assert not any(one.already_done for one in done)


def test_a_part_is_never_taken_for_the_run_over_all_sources(tmp_path, described, tokenizer):
    split(described, output=tmp_path / "cut", parts=named_parts([3, 1]))
    with pytest.raises(DataError, match="made by a different run"):
        preprocess(
            PreprocessConfig(
                inputs=[tmp_path / "texts.jsonl"],
                tokenizer=tokenizer,
                output=tmp_path / "cut_train",
            )
        )


def test_a_killed_split_goes_on_with_the_parts_that_lack(tmp_path, described):
    parts = named_parts([3, 1])
    split(described, output=tmp_path / "cut", parts=parts, shuffle_seed=1)
    for path in tmp_path.glob("cut_valid*"):
        path.unlink()
    done = split(described, output=tmp_path / "cut", parts=parts, shuffle_seed=1)
    assert [one.already_done for one in done] == [True, False]
    verify(tmp_path / "cut_valid")


def test_parts_of_two_different_splits_never_stand_together(tmp_path, described):
    split(described, output=tmp_path / "cut", parts=named_parts([3, 1]))
    for path in tmp_path.glob("cut_train*"):
        path.unlink()
    with pytest.raises(DataError, match=r"cut_valid.*--overwrite"):
        split(described, output=tmp_path / "cut", parts=named_parts([1, 1]))
    assert not list(tmp_path.glob("cut_train*"))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (named_parts([0.999, 0.001]), "part 'valid' would be empty"),
        (named_parts([1, 0]), "valid: ratio 0, want a number above 0"),
        (named_parts([1, 1], ["a", "a"]), "want distinct"),
        (equal_parts(301), "would be empty"),
    ],
)
def test_parts_that_cannot_be_are_refused_and_nothing_is_written(tmp_path, whole, parts, words):
    with pytest.raises(DataError, match=words):
        split(whole, output=tmp_path / "out", parts=parts, without_manifest=True)
    assert not list(tmp_path.glob("out*"))


def test_ratios_without_usual_names_need_names():
    with pytest.raises(UsageError, match="0 names for 4 ratios"):
        named_parts([1, 1, 1, 1])
