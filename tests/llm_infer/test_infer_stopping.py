import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_infer.stopping import StopMatcher

SHORT = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def _feed(pieces, stops):
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    return shown + matcher.flush(), matcher.is_stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["one\n", "\ntwo"], ["\n\n"], ("one", True)),
        (["one\n", "two"], ["\n\n"], ("one\ntwo", False)),
        (["one", "ST", "O", "Ptwo"], ["STOP"], ("one", True)),
        (["STOP"], ["STOP"], ("", True)),
        (["ends in ST"], ["STOP"], ("ends in ST", False)),
        (["aab"], ["ab", "aab"], ("", True)),
        (["xaaab"], ["aab"], ("xa", True)),
        (["abcX"], ["abcX", "bc"], ("a", True)),
        (["你", "好", "吗"], ["好吗"], ("你", True)),
    ],
)
def test_stop_strings_end_the_text_wherever_pieces_break(pieces, stops, expected):
    assert _feed(pieces, stops) == expected


def test_what_may_become_a_stop_string_is_held_back_and_no_more():
    matcher = StopMatcher(["STOP"])
    assert [matcher.push(piece) for piece in ["xS", "TO", "y"]] == ["x", "", "STOy"]


@given(text=SHORT, stops=STOPS, data=st.data())
def test_the_cut_does_not_depend_on_the_pieces(text, stops, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    # By hand: the first prefix of the text that ends in a stop string, without the longest such.
    expected = (text, False)
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            expected = (text[: end - max(map(len, ending))], True)
            break
    assert _feed(pieces, stops) == expected
