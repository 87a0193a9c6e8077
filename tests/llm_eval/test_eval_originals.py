"""Rows of the original layouts, against what the hub's data sets hold for the same records."""

import json

import pytest

from llm_eval.errors import EvalError
from llm_eval.originals import LAYOUTS


def _rows(name, path, content):
    layout = LAYOUTS[name]
    member = layout.member(path)
    assert member is not None
    return layout.rows(content if isinstance(content, bytes) else content.encode(), member)


def _line(**record):
    return json.dumps(record, ensure_ascii=False)


def test_a_line_of_mmlu_keeps_quotes_commas_and_newlines():
    content = '"Is ""x"", then,\ny?",1,2,"3, 4",5,C\n'
    assert _rows("mmlu", "data/test/anatomy_test.csv", content) == [
        {
            "question": 'Is "x", then,\ny?',
            "subject": "anatomy",
            "choices": ["1", "2", "3, 4", "5"],
            "answer": 2,
        }
    ]


def test_ceval_reads_its_header_and_a_byte_order_mark():
    content = "\ufeffid,question,A,B,C,D,answer\n7,问？,甲,乙,丙,丁,D\n"
    (row,) = _rows("ceval", "val/accountant_val.csv", content)
    assert row["id"] == 7
    assert (row["question"], row["D"], row["answer"], row["explanation"]) == ("问？", "丁", "D", "")


def test_the_test_split_of_ceval_has_no_answers():
    content = "id,question,A,B,C,D\n0,问？,甲,乙,丙,丁\n"
    assert _rows("ceval", "test/accountant_test.csv", content)[0]["answer"] == ""


def test_boolq_has_its_title_before_the_passage_as_superglue_has():
    # The first validation row of super_glue/boolq begins "Ethanol fuel -- All biomass goes ...".
    content = _line(
        question="does ethanol take more energy", title="Ethanol fuel", answer=False,
        passage="All biomass goes through some steps.",
    )  # fmt: skip
    (row,) = _rows("boolq", "dev.jsonl", content)
    assert row["passage"] == "Ethanol fuel -- All biomass goes through some steps."
    assert row["label"] == 0


def test_agieval_asks_in_the_words_of_its_authors():
    # Written out from convert_zero_shot of AGIEval's src/dataset_loader.py.
    record = {"passage": "P.", "question": "Why?", "options": ["(A)x", "(B)y"], "label": "B"}
    (row,) = _rows("agieval", "v1/lsat-rc.jsonl", _line(**record))
    assert row["query"] == (
        "P.Q: Why? Answer Choices: (A)x (B)y\nA: Among A through B, the answer is"
    )
    assert (row["choices"], row["gold"]) == (["(A)x", "(B)y"], [1])
    record = {"passage": None, "question": "为何？", "options": ["全部"], "label": ["A", "D"]}
    (row,) = _rows("agieval", "v1/jec-qa-kd.jsonl", _line(**record))
    assert row["query"] == "问题：为何？ 选项：全部\n答案：从A到D, 我们应选择"
    assert row["gold"] == [0, 3]
    record = {"passage": None, "question": "1/2?", "options": None, "label": None, "answer": "0.5"}
    (row,) = _rows("agieval", "v1/math.jsonl", _line(**record))
    assert row == {"query": "Q: 1/2?\nA: The answer is", "answer": "0.5"}


def test_hellaswag_labels_are_texts_as_on_the_hub():
    record = {
        "ind": 24, "activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he", "label": 3,
        "ctx": "A man sits. he", "endings": ["a", "b", "c", "d"], "split_type": "indomain",
    }  # fmt: skip
    (row,) = _rows("hellaswag", "hellaswag_val.jsonl", _line(**record))
    assert row["label"] == "3"


@pytest.mark.parametrize(
    ("name", "path", "content", "said"),
    [
        ("mmlu", "test/a_test.csv", "q,1,2,3,A\n", "record 1 has 5 columns, want 6: question, A"),
        ("mmlu", "test/a_test.csv", "q,1,2,3,4,E\n", "record 1: answer 'E', want one of A, B, C"),
        ("mmlu", "test/a_test.csv", "", "holds no record"),
        ("mmlu", "test/a_test.csv", b"q\xff,1,2,3,4,A\n", "byte 1 is not UTF-8"),
        ("mmlu", "test/a_test.csv", 'q,1,2,3,4,A\n"q', "not CSV"),
        ("cmmlu", "dev/a.csv", ",Question,A\n0,q,1\n", "record 1: no B, C, D, Answer; found"),
        ("boolq", "dev.jsonl", _line(question="q"), "record 1: no title, passage, answer"),
        ("gsm8k", "test.jsonl", '{"question": "q"', "line 1: not JSON"),
        ("gsm8k", "test.jsonl", "[1]", "line 1: found list, want a JSON object"),
        ("bbh", "bbh/snarks.json", '{"canary": 1}', "no examples; found canary"),
        ("bbh", "bbh/snarks.json", '{"examples": 1}', "'examples' is int, want a list"),
        ("agieval", "math.jsonl", _line(question="q"), "record 1: no answer, want a text"),
        ("agieval", "sat-en.jsonl", _line(
            question="q", options=["x", "y"], label="C"), "label 'C'"),
        ("mbpp", "mbpp.jsonl", _line(task_id=11, code="", test_list=["assert f()"]), "no text, "),
        ("mbpp", "mbpp/sanitized-mbpp.json", "{}", "found dict, want a JSON array"),
        ("mbpp", "sanitized-mbpp.json", '[{"task_id": 1}]', "record 1: no code, test_list"),
        ("mbpp", "mbpp.jsonl", _line(
            task_id=975, text="", code="", test_list=["assert f()"], test_setup_code="",
            challenge_test_list=[]), "task_id 975, want a number from 1 to 974"),
        ("mbpp", "mbpp.jsonl", _line(
            task_id=11, text="", code="", test_list="assert f()", test_setup_code="",
            challenge_test_list=[]), "test_list 'assert f()', want a list of assertions"),
        ("hellaswag", "hellaswag_val.jsonl", _line(
            activity_label="", ctx_a="", ctx_b="", endings=["a"], label=1), "label 1 is not"),
    ],
)  # fmt: skip
def test_a_broken_record_is_named(name, path, content, said):
    with pytest.raises(EvalError) as caught:
        _rows(name, path, content)
    assert path in str(caught.value)
    assert said in str(caught.value)


def test_files_that_are_not_data_are_left_out():
    assert LAYOUTS["mmlu"].member("data/possibly_contaminated_urls.txt") is None
    assert LAYOUTS["mmlu"].member("data/auxiliary_train/arc_easy.csv") is None
    assert LAYOUTS["hellaswag"].member("hellaswag_test.jsonl") is None
