"""Rules of scores in tokens, against lm-eval's own functions."""

import pytest
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows

from llm_infer.scoring import Reading, pair, up_to_stop, windows


def _letters(text, *, is_start=True):
    """A token a character, and 1 at the start of a text."""
    return [1] * is_start + [ord(letter) for letter in text]


def _pair(context, continuation, *, max_length=99):
    return pair(context, continuation, encode=_letters, prefix=1, max_length=max_length)


@pytest.mark.parametrize("max_length", [2, 3, 7, 50])
def test_windows_are_those_of_lm_eval(max_length):
    for length in range(24):
        tokens = list(range(100, 100 + length))
        theirs = get_rolling_token_windows(
            token_list=tokens, prefix_token=1, max_seq_len=max_length, context_len=1
        )
        expected = [Reading(tuple(read), tuple(targets)) for read, targets in theirs]
        assert windows(tokens, prefix=1, max_length=max_length) == expected


def test_spaces_that_end_a_context_are_scored_with_the_continuation():
    """By hand: lm-eval's rule, so that " A" is one text whether the space stands here or there."""
    expected = Reading((1, ord("Q"), ord(" ")), (ord(" "), ord("A")))
    assert _pair("Q ", "A") == _pair("Q", " A") == expected


def test_the_start_token_is_read_before_a_text_without_context():
    assert _pair("", "ab") == Reading((1, ord("a")), (ord("a"), ord("b")))
    assert _pair("", "\x01b") == Reading((1,), (ord("b"),))


def test_what_does_not_fit_is_cut_on_the_left():
    assert _pair("abcdef", "gh", max_length=3) == Reading((101, 102, 103), (103, 104))


@pytest.mark.parametrize(
    ("context", "continuation", "said"),
    [("a", "", "nothing to score"), ("", "", "nothing to score"), ("a", "bcde", "holds 3")],
)
def test_what_cannot_be_scored_is_refused(context, continuation, said):
    with pytest.raises(ValueError, match=said):
        _pair(context, continuation, max_length=3)


@pytest.mark.parametrize("text", ["", "one", "one two", "two one", "onetwo\n\nx", "\n\n"])
def test_texts_end_before_the_first_stop_as_lm_evals(text):
    stops = ["\n\n", "two", "tw"]
    expected = postprocess_generated_text(text, stops, None)
    assert up_to_stop(text, stops) == expected
