import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_data.packing import pack

CAPACITIES = st.integers(1, 60) | st.integers(2000, 9000)


@st.composite
def problems(draw):
    """A capacity and lengths within it, many of them equal."""
    capacity = draw(CAPACITIES)
    shortest = draw(st.integers(1, max(1, capacity // 3)))
    kinds = draw(st.lists(st.integers(shortest, capacity), min_size=1, max_size=40))
    return capacity, draw(st.lists(st.sampled_from(kinds), max_size=60))


def as_lengths(lengths):
    return np.array(lengths, dtype=np.int32)


def rows_of(lengths, capacity):
    packs = pack(as_lengths(lengths), capacity)
    return [row.tolist() for row in np.split(packs.order, packs.ends[:-1])] if len(packs) else []


def by_best_fit(lengths, capacity):
    """Best-fit decreasing as textbooks have it, an item at a time; the room left in each bin."""
    bins = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(bins) if room >= length]
        if fitting:
            bins[min(fitting, key=lambda i: bins[i])] -= length
        else:
            bins.append(capacity - length)
    return bins


def fewest_rows(lengths, capacity):
    """The optimum, by trying every choice of a bin for each item."""
    best = len(lengths)

    def place(rest, bins):
        nonlocal best
        if len(bins) >= best:
            return
        if not rest:
            best = len(bins)
            return
        for room in sorted(set(bins)):
            if room >= rest[0]:
                others = list(bins)
                others.remove(room)
                place(rest[1:], [*others, room - rest[0]])
        place(rest[1:], [*bins, capacity - rest[0]])

    place(sorted(lengths, reverse=True), [])
    return best


@settings(max_examples=200, deadline=None)
@given(problem=problems())
def test_every_sample_is_in_one_row_that_holds_it(problem):
    capacity, lengths = problem
    rows = rows_of(lengths, capacity)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= capacity for row in rows)


@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_rows_and_samples_within_them_keep_the_order_of_the_input(problem):
    capacity, lengths = problem
    rows = rows_of(lengths, capacity)
    assert all(row == sorted(row) for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_rows_are_no_more_than_by_textbook_best_fit_decreasing():
    rng = np.random.default_rng(1)
    for _ in range(200):
        capacity = int(rng.integers(20, 5000))
        shortest, longest = np.sort(rng.integers(1, capacity + 1, 2))
        lengths = rng.integers(min(shortest, capacity // 3), longest + 1, 80).tolist()
        lengths = [max(1, length) for length in lengths]
        assert len(rows_of(lengths, capacity)) <= len(by_best_fit(lengths, capacity))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(4, 24).flatmap(
        lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=9))
    )
)
def test_few_samples_need_at_most_one_row_more_than_the_optimum(problem):
    capacity, lengths = problem
    assert len(rows_of(lengths, capacity)) <= fewest_rows(lengths, capacity) + 1


@pytest.mark.parametrize(
    ("capacity", "lengths"),
    [
        (10, [10, 10]),
        (10, [6, 4, 6, 4]),
        (100, [60, 50, 50, 40]),
        # Johnson's: first-fit decreasing opens 11 bins for every 9 of the optimum.
        (60, [31] * 6 + [17] * 6 + [16] * 6 + [13] * 12),
    ],
)
def test_known_instances_are_packed_without_a_token_left(capacity, lengths):
    assert len(rows_of(lengths, capacity)) == -(-sum(lengths) // capacity)


def log_normal(rng, median, sigma):
    return np.clip(rng.lognormal(np.log(median), sigma, 100_000), 8, 4096).astype(np.int32)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(lambda rng: log_normal(rng, 110, 0.7), id="instructions"),
        pytest.param(lambda rng: log_normal(rng, 500, 0.9), id="chat"),
        pytest.param(lambda rng: log_normal(rng, 800, 0.2), id="chat of one length"),
        pytest.param(lambda rng: log_normal(rng, 1500, 0.5), id="thoughts"),
        pytest.param(lambda rng: log_normal(rng, 2000, 0.9), id="long documents"),
        pytest.param(lambda rng: rng.integers(1, 4097, 100_000).astype(np.int32), id="uniform"),
    ],
)
def test_rows_of_4096_reach_99_5_percent_of_the_token_bound(kind):
    lengths = kind(np.random.default_rng(7))
    least = -(-int(lengths.sum()) // 4096)
    assert least / len(pack(lengths, 4096)) >= 0.995


def test_samples_over_a_half_get_a_row_each_because_no_two_fit():
    lengths = np.arange(2049, 2149, dtype=np.int32)
    assert len(pack(lengths, 4096)) == 100


@pytest.mark.parametrize("capacity", [4096, 10_001, 1 << 20])
def test_a_sample_may_be_as_long_as_the_row(capacity):
    assert rows_of([capacity, capacity - 1, 1, capacity], capacity) == [[0], [1, 2], [3]]


def test_what_reaches_past_the_last_whole_unit_of_a_row_is_packed_too():
    # 10,001 tokens are 2,500 units of four and one token more; best fit leaves room here.
    assert len(rows_of([10_001, 5001, 5001, 5001], 10_001)) == 4


def test_no_samples_give_no_rows():
    packs = pack(as_lengths([]), 4096)
    assert (len(packs), packs.order.tolist(), packs.ends.tolist()) == (0, [], [])


@pytest.mark.parametrize(
    ("lengths", "capacity", "says"),
    [
        ([3, 0], 8, "sample 1 has 0 tokens, want 1 to 8"),
        ([3, 4, 9], 8, "sample 2 has 9 tokens, want 1 to 8"),
        ([-1], 8, "sample 0 has -1 tokens"),
        ([1], 0, "capacity 0, want at least 1"),
    ],
)
def test_a_length_that_no_row_holds_is_refused(lengths, capacity, says):
    with pytest.raises(ValueError, match=says):
        pack(as_lengths(lengths), capacity)
