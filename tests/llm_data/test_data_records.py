import pytest

from llm_data.records import Place, Reason, Record, Reject, Shape, text_of

PLACE = Place(0, 1, 10)


@pytest.mark.parametrize(
    ("shape", "payload", "text"),
    [
        (Shape.JSON, b'{"text": "a\\n\\u00e9"}', "a\né"),
        (Shape.JSON, b'{"text": " x "}', " x "),
        (Shape.TEXT, "ready", "ready"),
        (Shape.TEXT, b"caf\xc3\xa9\r\n", "café\r\n"),
        (Shape.FILE, b"\tkept \n", "\tkept \n"),
    ],
)
def test_text_is_taken_unchanged(shape, payload, text):
    assert text_of(Record(PLACE, shape, payload), key="text") == text


@pytest.mark.parametrize(
    ("shape", "payload", "reason", "says"),
    [
        (Shape.JSON, b'{"text": "a"', Reason.INVALID_JSON, "column 1"),
        (Shape.JSON, b'{"text": "\xff"}', Reason.INVALID_UTF8, "byte 0xff at offset 10"),
        (Shape.JSON, b'["a"]', Reason.WRONG_TYPE, "found a list"),
        (Shape.JSON, b'{"text": null}', Reason.WRONG_TYPE, "'text' is null, want a string"),
        (Shape.JSON, b'{"text": [1]}', Reason.WRONG_TYPE, "'text' is a list"),
        (
            Shape.JSON,
            b'{"texts": "a", "id": 1}',
            Reason.MISSING_KEY,
            "has texts, id; did you mean 'texts'?",
        ),
        (Shape.JSON, b'{"text": ""}', Reason.EMPTY, "empty"),
        (Shape.TEXT, b"a\xe9", Reason.INVALID_UTF8, "byte 0xe9 at offset 1"),
        (Shape.FILE, b"", Reason.EMPTY, "empty"),
    ],
)
def test_a_record_without_text_says_why(shape, payload, reason, says):
    found = text_of(Record(PLACE, shape, payload), key="text")
    assert isinstance(found, Reject)
    assert (found.reason, found.place) == (reason, PLACE)
    assert says in found.detail


def test_a_rejected_line_is_kept_and_a_rejected_file_is_not():
    line = text_of(Record(PLACE, Shape.JSON, b'{"a": "\xff"}'), key="text")
    file = text_of(Record(PLACE, Shape.FILE, b"\xff"), key="text")
    assert isinstance(line, Reject)
    assert line.raw == '{"a": "\\xff"}'
    assert isinstance(file, Reject)
    assert file.raw is None
