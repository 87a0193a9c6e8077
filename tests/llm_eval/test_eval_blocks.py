from hypothesis import given
from hypothesis import strategies as st

from llm_eval.blocks import MAX_ROWS, MAX_TOKENS, Row, common_prefix, plan

rows = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=90).flatmap(
        lambda tokens: st.integers(0, len(tokens) - 1).map(lambda n: Row(tuple(tokens), n))
    ),
    max_size=40,
)


@given(rows)
def test_every_row_is_in_one_block_and_shares_what_it_claims(rows):
    blocks = plan(rows)
    assert sorted(number for block in blocks for number in block.rows) == list(range(len(rows)))
    for block in blocks:
        members = [rows[number] for number in block.rows]
        assert len({row.tokens[: block.shared] for row in members}) == 1
        assert all(block.shared <= row.first for row in members)
        width = max(len(row.tokens) - block.shared for row in members)
        assert len(members) == 1 or len(members) * width <= MAX_TOKENS
        assert len(members) <= MAX_ROWS


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)), st.integers(0, 40))
def test_a_common_prefix_is_the_longest(first, second, limit):
    found = common_prefix(tuple(first), tuple(second), limit)
    pairs = zip(first, second, strict=False)
    same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    assert found == min(limit, same)


def test_questions_after_the_same_examples_share_them():
    examples = tuple(range(100, 700))
    asked = [Row((*examples, *range(n, n + 40 + n)), 600 + 39 + n) for n in range(1, 11)]
    (block,) = plan(asked)
    assert block.shared == 600
    assert [len(asked[number].tokens) for number in block.rows] == list(range(650, 640, -1))


def test_rows_with_nothing_in_common_are_padded_together():
    asked = [Row(tuple(range(n * 50, n * 50 + 30 + n)), 29) for n in range(5)]
    (block,) = plan(asked)
    assert (block.shared, block.rows) == (0, (4, 3, 2, 1, 0))
