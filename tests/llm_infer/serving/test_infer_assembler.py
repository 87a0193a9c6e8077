from hypothesis import given
from hypothesis import strategies as st

from llm_infer.engine import Event
from llm_infer.serving.assembler import Assembler

WORDS = ("a", "b", "ab", "ba", "é", "")


def _decode(tokens):
    return "".join(WORDS[token] for token in tokens)


def _pieces(tokens, stops, *, reason="length"):
    """Those of an answer, up to its end."""
    assembler = Assembler(0, _decode, stops)
    pieces = []
    for number, token in enumerate(tokens):
        event = Event(request=0, token=token, end=None, logprob=-float(number))
        pieces.append(assembler.push(token, event))
        if assembler.is_stopped:
            return pieces, assembler
    return [*pieces, assembler.finish(reason)], assembler


@given(
    tokens=st.lists(st.integers(0, 5), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=3), max_size=2),
)
def test_text_is_cut_and_every_token_of_it_told_once(tokens, stops):
    pieces, assembler = _pieces(tokens, stops)
    whole = _decode(tokens[: assembler.num_tokens])
    text = "".join(piece.text for piece in pieces)
    told = [token for piece in pieces for token in piece.tokens]
    assert whole.startswith(text)
    assert [-token.logprob for token in told] == list(range(len(told)))
    if pieces[-1].finish == "stop":
        assert any(whole[len(text) :].startswith(stop) for stop in stops)
        # By hand: the tokens whose text begins within what is shown.
        starts = [len(_decode(tokens[:i])) for i in range(assembler.num_tokens)]
        shown = sum(start < len(text) for start in starts)
        assert shown <= len(told) <= shown + tokens.count(5)
    else:
        assert text == whole
        assert len(told) == len(tokens)


def test_a_token_is_not_told_before_its_text():
    pieces, _ = _pieces([0, 0, 1], ["aab"])
    assert [(piece.text, len(piece.tokens)) for piece in pieces] == [("", 0), ("", 0), ("", 0)]
    assert pieces[-1].finish == "stop"
    pieces, _ = _pieces([0, 0, 0], ["aab"])
    assert [(piece.text, len(piece.tokens)) for piece in pieces] == [
        ("", 0),
        ("", 0),
        ("a", 1),
        ("aa", 2),
    ]


def test_offsets_count_the_characters_before():
    pieces, _ = _pieces([2, 4, 0], [])
    told = [token for piece in pieces for token in piece.tokens]
    assert [(token.text, token.offset) for token in told] == [("ab", 0), ("é", 2), ("a", 3)]
