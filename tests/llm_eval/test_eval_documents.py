import pytest

from llm_eval.documents import Document, digest, parse_jsonl, without_empty
from llm_eval.errors import EvalError


def test_one_document_per_line_that_is_not_blank():
    lines = '{"text": "one"}\n\n{"text": "two\\nlines", "id": 7}\n'
    assert list(parse_jsonl(lines, "f.jsonl", "text")) == [
        Document("f.jsonl:1", "one"),
        Document("f.jsonl:3", "two\nlines"),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"f.jsonl:2: not JSON"),
        ("[1]", r"f.jsonl:2: found list, want a JSON object"),
        ('{"body": "x", "id": 1}', r"f.jsonl:2: no key 'text'; its keys: body, id .*--text-key"),
        ('{"text": 3}', r"f.jsonl:2: 'text' is int, want a string"),
    ],
)
def test_a_bad_line_is_named_with_what_was_found(line, said):
    with pytest.raises(EvalError, match=said):
        list(parse_jsonl('{"text": "fine"}\n' + line, "f.jsonl", "text"))


def test_empty_documents_are_left_out():
    assert without_empty([Document("a", ""), Document("b", " ")]) == [Document("b", " ")]


def test_digest_sees_where_one_text_ends_and_the_next_begins():
    one = digest([Document("a", "bc"), Document("d", "")])
    other = digest([Document("a", "b"), Document("cd", "")])
    assert one != other
