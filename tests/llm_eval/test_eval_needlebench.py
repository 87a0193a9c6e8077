"""NeedleBench's prompts and score, against what OpenCompass' `needlebench/origin.py` does."""

import random

import pytest

from llm_eval.errors import EvalError
from llm_eval.needlebench import (
    NUM_REPEATS,
    SIZES,
    Haystack,
    Needle,
    Spec,
    Tokens,
    edit_distance,
    score,
)

CHARACTERS = Tokens(
    encode=lambda text: [ord(c) for c in text], decode=lambda ids: "".join(map(chr, ids))
)
QUESTION = "Where is it? Please answer in the format 'It is _'."
ROWS = {
    "needles": [
        {"needle": "It is X.", "retrieval_question": QUESTION, "arg2": "X", "language": "English"},
        {"needle": "它在岛。", "retrieval_question": "在哪？请按照格式回答", "arg2": "岛",
         "language": "Chinese"},
    ],
    "english": [{"text": letter * 30} for letter in "abcdef"],
    "chinese": [{"text": "金" * 100}],
}  # fmt: skip


def _haystack(language="English", *, is_guided=True, rows=ROWS):
    spec = Spec(language=language, is_guided=is_guided)
    return Haystack(rows, spec=spec, tokens=CHARACTERS)


def test_the_prompt_is_that_of_opencompass_with_the_needle_at_its_depth():
    # Worked out by hand: 60 - 20 spare - 10 of the needle with its two line ends = 30 of texts.
    haystack = _haystack(rows={**ROWS, "english": [{"text": "abcdefghij" * 4}]})
    assert haystack.prompt(length=60, depth=50, repeat=0, spare_tokens=20) == (
        "You are an intelligent AI assistant skilled in answering user questions.\n"
        "Please keep your answers concise and clear. Do not talk about irrelevant topics or "
        "repeat your answers.\nThe document given to you by the user is "
        "abcdefghijabcde\nIt is X.\nfghijabcdefghij\n\n"
        "Now, the question is: Where is it? Before answering, please consider what in the "
        "document is most relevant to this question. Please answer in the format 'It is _'."
    )
    first, last = (
        haystack.prompt(length=60, depth=depth, repeat=3, spare_tokens=20) for depth in (0, 100)
    )
    assert "is \nIt is X.\nabcdefghij" in first
    assert "ghij\nIt is X.\n\n\nNow" in last


def test_the_chinese_prompt_has_its_own_words_and_an_unguided_one_no_guide():
    asked = _haystack("Chinese").prompt(length=20, depth=0, repeat=0, spare_tokens=10)
    assert asked == (
        "你是一个善于回答用户问题的智能AI助手\n"
        "请保持你的回答简洁清楚。不要说和下面文档中的无关的话，或重复你的回答\n"
        "用户现在给你的文档是\n它在岛。\n金金金金\n\n"
        "现在请问：在哪？在回答之前，请思考文档中与此问题最相关的内容是什么。请按照格式回答"
    )
    plain = _haystack(is_guided=False)
    assert plain.prompt(length=60, depth=0, repeat=0, spare_tokens=0).endswith(f"is: {QUESTION}")


def test_texts_and_needles_are_drawn_as_opencompass_draws_them():
    places = [row | {"arg2": place} for place in "PQRS" for row in ROWS["needles"]]
    haystack = _haystack(rows={**ROWS, "needles": places})
    lines = [row["text"] for row in ROWS["english"]]
    english = [row for row in places if row["language"] == "English"]
    for repeat in range(NUM_REPEATS):
        random.seed(repeat)
        random.shuffle(lines)
        random.seed(repeat)
        assert haystack.needle(repeat).keyword == random.choice(english)["arg2"]
        prompt = haystack.prompt(length=100, depth=100, repeat=repeat, spare_tokens=0)
        assert f"is {''.join(lines)[:90]}\nIt" in prompt


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("岛", "岛", 0)],
)
def test_the_edit_distance_is_levenshteins(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It must be X, I think", 100.0),  # the keyword, whatever stands around it
        ("", 0.0),
        ("It is Y.", 20 * (1 - 1 / 6)),  # "ItisY." and "ItisX." differ in one of six
        ("It  is\nx", 20 * (1 - 2 / 6)),  # a keyword of another case is none
    ],
)
def test_an_answer_without_the_keyword_has_a_fifth_of_its_likeness(answer, expected):
    needle = Needle(text="\nIt is X.\n", question=QUESTION, keyword="X")
    assert score(answer, needle) == pytest.approx(expected)


def test_the_sizes_have_the_lengths_and_depths_of_opencompass():
    # generate_linear_space(0, 100, 20) of needlebench_single_8k.py, cut to whole numbers.
    depths = [int(100 / 19 * step) for step in range(19)] + [100]
    assert list(SIZES["8k"].depths) == depths
    assert {name: max(size.lengths) for name, size in SIZES.items()} == {
        "4k": 4000, "8k": 8000, "32k": 32000, "128k": 128000,
    }  # fmt: skip


def test_what_is_missing_is_named():
    with pytest.raises(EvalError, match="no needles in Chinese"):
        _haystack("Chinese", rows={**ROWS, "needles": ROWS["needles"][:1]})
    with pytest.raises(EvalError, match=r"no texts in English; import needles\.jsonl"):
        _haystack(rows={"needles": ROWS["needles"]})
    with pytest.raises(EvalError, match="have 180 tokens, want 990; choose a smaller --size"):
        _haystack().prompt(length=1000, depth=0, repeat=0, spare_tokens=0)
    other = [ROWS["needles"][0] | {"retrieval_question": "Where?"}]
    with pytest.raises(EvalError, match="'Where\\?' has no 'Please answer in the format'"):
        _haystack(rows={**ROWS, "needles": other})
