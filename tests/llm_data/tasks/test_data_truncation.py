"""How conversations that are too long are shortened."""

import random

import numpy as np
import pytest

from llm_data.tasks.chat_tokens import ChatTokens, TokenSpan
from llm_data.tasks.truncation import fit, truncate_turns


@pytest.mark.parametrize(
    ("prompt", "answer", "kept"),
    [
        (3000, 2000, (600, 400)),
        (2000, 3000, (400, 600)),
        (1000, 100, (900, 100)),
        (100, 1000, (100, 900)),
        (100, 500, (100, 500)),
        (500, 100, (500, 100)),
        (10, 10, (10, 10)),
    ],
)
def test_a_turn_is_shared_as_llama_factory_shares_it(prompt, answer, kept):
    """The table of LLaMA-Factory's own test of its rule, cutoff 1000."""
    assert fit(prompt, answer, capacity=1000) == kept


def test_what_fits_stays_whole():
    for prompt in range(40):
        for answer in range(40):
            for spare in range(3):
                assert fit(prompt, answer, capacity=prompt + answer + spare) == (prompt, answer)


def _turns(*sizes: tuple[int, int], tail: int = 0) -> ChatTokens:
    """Turn n's prompt is the tokens 100 n, 100 n + 1, …, its answer -100 n, -100 n - 1, …"""
    ids: list[int] = []
    spans = []
    for number, (prompt, answer) in enumerate(sizes, 1):
        ids += range(100 * number, 100 * number + prompt)
        spans.append(TokenSpan(len(ids), len(ids) + answer, 2 * number - 1))
        ids += range(-100 * number, -100 * number - answer, -1)
    return ChatTokens(np.array(ids + [0] * tail, np.int32), tuple(spans))


def test_turns_take_room_in_their_order():
    """Room 10: the first takes 2 + 3, then 5 are left for 4 + 4: 5 * 4 // 8 = 2 of the answer."""
    found = truncate_turns(_turns((2, 3), (4, 4), (1, 1), tail=1), 10, newest_first=False)
    assert found.ids.tolist() == [100, 101, -100, -101, -102, 200, 201, 202, -200, -201]
    assert found.spans == ((2, 5, 1), (8, 10, 3))


def test_the_newest_turns_survive_where_only_the_last_is_learned():
    """Room 10: the last takes 3 + 2, then 5 are left for 4 + 4, and none for the first."""
    found = truncate_turns(_turns((2, 3), (4, 4), (3, 2), tail=1), 10, newest_first=True)
    assert found.ids.tolist() == [200, 201, 202, -200, -201, 300, 301, 302, -300, -301]
    assert found.spans == ((3, 5, 3), (8, 10, 5))


def test_text_after_the_last_answer_goes_first():
    found = truncate_turns(_turns((2, 3), (1, 1), tail=2), 8, newest_first=False)
    assert found.ids.tolist() == [100, 101, -100, -101, -102, 200, -200]


def test_every_answer_left_is_the_beginning_of_that_answer():
    rng = random.Random(1)
    for _ in range(500):
        sizes = [(rng.randint(0, 30), rng.randint(0, 30)) for _ in range(rng.randint(1, 5))]
        whole = _turns(*sizes)
        capacity = rng.randint(1, 100)
        found = truncate_turns(whole, capacity, newest_first=rng.random() < 0.5)
        assert len(found.ids) == min(capacity, len(whole.ids))
        answers = {span.message: whole.ids[span.start : span.end] for span in whole.spans}
        for span in found.spans:
            kept = found.ids[span.start : span.end].tolist()
            assert kept == answers[span.message][: len(kept)].tolist()
