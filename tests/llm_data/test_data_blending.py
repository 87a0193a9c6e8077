"""Orders against megatron-core's compiled rule and `datasets.interleave_datasets`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_data.blending import Recipe, Shuffle, Strategy, blend, normalized
from llm_data.errors import UsageError


def megatrons(weights, size):
    """Dataset numbers and sample numbers, by megatron-core's own helper."""
    from megatron.core.datasets import helpers

    datasets, samples = np.zeros(size, np.int16), np.zeros(size, np.int64)
    helpers.build_blending_indices(
        datasets, samples, list(normalized(weights)), len(weights), size, False
    )
    return datasets, samples


def rows(recipe):
    """The order as (dataset, document) pairs."""
    return [
        pair
        for draws in recipe.draws()
        for pair in zip(draws.datasets.tolist(), draws.documents.tolist(), strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.floats(0.001, 1000), min_size=1, max_size=8), size=st.integers(1, 300))
def test_a_short_blend_is_megatrons(weights, size):
    sizes = tuple(7 for _ in weights)
    recipe = Recipe(strategy=Strategy.BLEND, sizes=sizes, weights=tuple(weights), size=size)
    datasets, samples = megatrons(weights, size)
    assert rows(recipe) == list(zip(datasets.tolist(), (samples % 7).tolist(), strict=True))


@pytest.mark.parametrize(
    "weights",
    [
        [0.7, 0.3],
        [1, 1, 1, 1, 1, 1, 1],
        [0.9, 0.09, 0.009, 0.001],
        [1e6, 3, 2, 1],
        [1.0, 1 / 3, 0.1, 0.017, 7.7, 2.9],
        np.random.RandomState(0).dirichlet(np.full(60, 0.3)).clip(1e-7).tolist(),
    ],
    ids=["two", "equal", "decades", "rare", "odd", "sixty"],
)
def test_a_blend_of_many_stretches_is_megatrons(weights):
    size = 700_001
    found = np.concatenate(list(blend(normalized(weights), size=size)))
    np.testing.assert_array_equal(found, megatrons(weights, size)[0])


@pytest.mark.parametrize("over", [False, True], ids=["under", "over"])
@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ((3, 4, 5), None),
        ((1, 9), None),
        ((3, 4, 5), (0.2, 0.5, 0.3)),
        ((400, 1200, 90), (0.1, 0.85, 0.05)),
        ((2500, 2), (0.999, 0.001)),
        ((5,), (1.0,)),
    ],
)
def test_interleaving_is_that_of_hugging_face_datasets(sizes, weights, over):
    import datasets

    theirs = datasets.interleave_datasets(
        [
            datasets.Dataset.from_dict({"dataset": [number] * size, "document": list(range(size))})
            for number, size in enumerate(sizes)
        ],
        probabilities=list(weights) if weights else None,
        seed=42,
        stopping_strategy="all_exhausted" if over else "first_exhausted",
    )
    strategy = Strategy.INTERLEAVE_OVER if over else Strategy.INTERLEAVE_UNDER
    ours = rows(Recipe(strategy=strategy, sizes=sizes, weights=weights, seed=42))
    assert ours == list(zip(theirs["dataset"], theirs["document"], strict=True))


def test_concat_takes_every_document_once_in_order():
    recipe = Recipe(strategy=Strategy.CONCAT, sizes=(2, 20_000, 1))
    wanted = [(0, 0), (0, 1), *((1, number) for number in range(20_000)), (2, 0)]
    assert rows(recipe) == wanted


def test_totals_count_the_draws():
    recipe = Recipe(strategy=Strategy.BLEND, sizes=(5, 9), weights=(3.0, 1.0), size=20_000)
    assert recipe.totals().tolist() == [15_000, 5_000]


def test_each_pass_of_a_shuffled_blend_holds_every_document_in_another_order():
    weights = (2.0, 1.0)
    recipe = Recipe(
        strategy=Strategy.BLEND, sizes=(50, 40), weights=weights, size=300, shuffle_seed=3
    )
    found = rows(recipe)
    plain = rows(Recipe(strategy=Strategy.BLEND, sizes=(50, 40), weights=weights, size=300))
    assert [dataset for dataset, _ in found] == [dataset for dataset, _ in plain]
    drawn = [document for dataset, document in found if dataset == 0]
    passes = [tuple(drawn[first : first + 50]) for first in range(0, 200, 50)]
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert len(set(passes)) == 4
    assert tuple(range(50)) not in passes


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(-5, 2**70))
def test_a_shuffle_holds_every_number_once_and_is_its_own_inverse_backwards(size, seed):
    shuffle = Shuffle(size, seed=seed)
    every = np.arange(size)
    found = shuffle.documents(every)
    assert sorted(found.tolist()) == every.tolist()
    np.testing.assert_array_equal(shuffle.places(found), every)


def test_a_shuffle_leaves_no_pattern():
    """Over many seeds every document is equally often first, and neighbours part at random."""
    firsts, gaps = np.zeros(12), []
    for seed in range(6000):
        order = Shuffle(12, seed=seed).documents(np.arange(12))
        firsts[order[0]] += 1
        gaps.append(np.corrcoef(np.arange(12), order)[0, 1])
    expected = 6000 / 12
    # 11 degrees of freedom: 31.3 is passed by chance once in a thousand.
    assert ((firsts - expected) ** 2 / expected).sum() < 31.3
    # The mean correlation of random orders of 12 is 0 with a deviation of 1/sqrt(11 * 6000).
    assert abs(np.mean(gaps)) < 3.3 / np.sqrt(11 * 6000)


def test_the_shuffle_never_changes():
    """Hand-run in Python's own integers, so that no numpy version can move anyone's split."""
    mask = (1 << 64) - 1

    def mixed(value):
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    def splitmix(value):
        return mixed((value + 0x9E3779B97F4A7C15) & mask)

    state = splitmix(7)
    keys = []
    for _ in range(8):
        state = (state + 0x9E3779B97F4A7C15) & mask
        keys.append(splitmix(state))

    def place(number):
        while True:
            high, low = number >> 3, number & 7
            for turn, key in enumerate(keys):
                if turn % 2 == 0:
                    high ^= mixed(low ^ key) >> 60
                else:
                    low ^= mixed(high ^ key) >> 61
            number = (high << 3) | low
            if number < 100:
                return number

    wanted = [place(number) for number in range(100)]
    assert Shuffle(100, seed=7).documents(np.arange(100)).tolist() == wanted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": (1.0, 0.0)}, "weight 0.0, want a number above 0"),
        ({"weights": (1.0, float("nan"))}, "weight nan"),
        ({"weights": (1.0,)}, "1 weights for 2 datasets"),
        ({"weights": None}, "a blend needs a weight"),
        ({"sizes": (3, 0)}, "datasets 1 hold no document"),
        ({"size": 0}, "0 documents wanted"),
        ({"strategy": Strategy.CONCAT}, "no use for weights"),
    ],
)
def test_what_cannot_be_mixed_is_named(change, words):
    good = {"strategy": Strategy.BLEND, "sizes": (3, 4), "weights": (1.0, 2.0), "size": 9}
    with pytest.raises(UsageError, match=words):
        Recipe(**{**good, **change})
