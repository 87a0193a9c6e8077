import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_infer.thinking import (
    THINK,
    Thought,
    ThoughtReading,
    ThoughtSplitter,
    marks_of,
    reading_after,
)


def _split(pieces, **reading):
    """Thought and answer; no piece of an answer comes before one of a thought."""
    splitter = ThoughtSplitter(ThoughtReading(**reading))
    parts = [part for piece in pieces for part in splitter.push(piece)] + list(splitter.flush())
    thoughts = [part.text for part in parts if isinstance(part, Thought)]
    assert [part.text for part in parts[: len(thoughts)]] == thoughts
    assert all(thoughts)
    assert all(parts)
    return "".join(thoughts), "".join(parts[len(thoughts) :])


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
    assert reading_after("<|assistant|>\n<think>\n", THINK).is_open
    assert not reading_after("<think>\n\n</think>\n\n", THINK).is_open
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


def test_a_thought_that_stays_in_the_text_keeps_its_marks():
    """Beside the answer, so that who reads calls knows where they may begin."""
    text = " <think>\n hm </think>\n\nYes."
    for pieces in ([text], list(text)):
        assert _split(pieces, is_apart=False) == (" <think>\n hm </think>", "\n\nYes.")
    assert _split(["hm</think>Yes"], is_apart=False, is_open=True) == ("hm</think>", "Yes")


# As the models' chat templates write them.
@pytest.mark.parametrize(
    ("template", "opening", "closing"),
    [
        ("{{ '<|im_start|>' + role }}", "<think>", "</think>"),
        ("content.split('</think>')[-1]", "<think>", "</think>"),
        ("'[THINK]' + block['thinking'] + '[/THINK]'", "[THINK]", "[/THINK]"),
        ("{%- set think_begin_token = '<seed:think>' -%}", "<seed:think>", "</seed:think>"),
        ("'◁think▷'", "◁think▷", "◁/think▷"),
        ("<|START_THINKING|><|END_THINKING|>", "<|START_THINKING|>", "<|END_THINKING|>"),
    ],
)
def test_the_template_says_what_thoughts_are_marked_with(template, opening, closing):
    marks = marks_of(template)
    assert marks.both == (opening, closing)
    text = f"{opening}hm{closing}Yes."
    assert _split(list(text), marks=marks) == ("hm", "Yes.")
