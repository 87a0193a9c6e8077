import itertools

import pytest

from llm_infer.sampling import Sampling
from llm_infer.stream import TextStream


def _decode(tokens):
    return "".join(map(chr, tokens))


def _stream(text, *, room=100, closed=None, **sampling):
    def tokens():
        try:
            yield from map(ord, text)
        finally:
            if closed is not None:
                closed.append(True)

    clock = itertools.count(10.0, 0.5).__next__
    return TextStream(tokens(), _decode, Sampling(**sampling), room=room, clock=clock)


def test_text_and_counts_are_those_of_the_tokens():
    stream = _stream("hello")
    assert list(stream) == list("hello")
    assert (stream.text, stream.num_tokens, stream.finish_reason) == ("hello", 5, "end")


@pytest.mark.parametrize(
    ("room", "limit", "reason"),
    [(100, 5, "length"), (5, 128, "context"), (100, 6, "end"), (5, 5, "length")],
)
def test_why_it_ended(room, limit, reason):
    stream = _stream("hello", room=room, max_new_tokens=limit)
    assert "".join(stream) == "hello"
    assert stream.finish_reason == reason


def test_a_stop_string_ends_the_computation_and_is_not_shown():
    closed = []
    stream = _stream("one END two", closed=closed, stop=("END",))
    assert "".join(stream) == "one "
    assert (stream.finish_reason, stream.num_tokens, closed) == ("stop", 7, [True])


def test_what_looked_like_a_stop_string_is_shown_at_the_end():
    stream = _stream("one EN", stop=("END",))
    assert "".join(stream) == "one EN"
    assert stream.finish_reason == "end"


def test_times_come_from_the_clock():
    stream = _stream("abcde")
    list(stream)
    # The clock steps half a second a token, the start included.
    assert stream.first_token_s == 0.5
    assert stream.tokens_per_s == 2.0


def test_one_token_has_no_rate():
    stream = _stream("a")
    list(stream)
    assert stream.tokens_per_s is None
