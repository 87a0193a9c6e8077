import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_infer.thinking import Kind, ThoughtSplitter, opens_thought


def _split(pieces, *, is_open=False):
    splitter = ThoughtSplitter(is_open=is_open)
    parts = [part for piece in pieces for part in splitter.push(piece)] + list(splitter.flush())
    assert all(part.text for part in parts)
    kinds = [part.kind for part in parts]
    assert kinds == sorted(kinds, key=[Kind.THOUGHT, Kind.ANSWER].index)
    return tuple("".join(p.text for p in parts if p.kind is kind) for kind in Kind)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\nhm\n</think>\n\nYes.", "hm", "Yes."),
        ("\n<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("Yes <think>no</think>", "", "Yes <think>no</think>"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        (" <thin", "", " <thin"),
        ("  two\n", "", "  two\n"),
    ],
)
def test_a_thought_is_what_opens_the_answer(text, thought, answer):
    assert _split([text]) == (thought, answer)
    assert _split(list(text)) == (thought, answer)


def test_a_thought_that_never_ends_is_all_thought():
    assert _split(["<think>a </thin"]) == ("a </thin", "")


def test_a_thought_the_prompt_opened_is_closed_by_the_answer():
    assert opens_thought("<|assistant|>\n<think>\n")
    assert not opens_thought("<think>\n\n</think>\n\n")
    assert _split(["hm", "</thi", "nk>", " Yes."], is_open=True) == ("hm", "Yes.")


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "thi", "nk>", " ", "\n", "a"]))


@given(pieces=PIECES, is_open=st.booleans())
@example(pieces=["<think>", " ", "a", " ", "</thi", "nk>", " ", "b", " "], is_open=False)
def test_the_parts_do_not_depend_on_how_the_text_was_cut(pieces, is_open):
    text = "".join(pieces)
    # By hand: a regular expression over the whole text.
    begun = "" if is_open else r"\s*<think>"
    if match := re.fullmatch(rf"{begun}\s*(.*?)\s*</think>\s*(.*)", text, re.DOTALL):
        expected = match[1], match[2]
    elif match := re.fullmatch(rf"{begun}\s*(.*)", text, re.DOTALL):
        expected = match[1], ""
    else:
        expected = "", text
    assert _split(pieces, is_open=is_open) == expected
