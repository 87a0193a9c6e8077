import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_data.errors import FormatError
from llm_data.formats import json_stream
from llm_data.formats.json_stream import split_values

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=3)


def cut(data, block):
    """Values cut from `data` served at most `block` bytes at a time."""
    stream = io.BytesIO(data)
    return list(split_values(lambda count: stream.read(min(count, block)), where="f.json"))


@settings(deadline=None)
@given(values=st.lists(VALUES), block=st.integers(1, 40), indent=st.sampled_from([None, 0, 3]))
def test_elements_of_an_array_are_those_json_finds(values, block, indent):
    data = json.dumps(values, ensure_ascii=False, indent=indent).encode()
    assert [json.loads(piece) for piece in cut(data, block)] == values


@settings(deadline=None)
@given(values=st.lists(OBJECTS), block=st.integers(1, 40), indent=st.sampled_from([None, 2]))
def test_objects_one_after_another_are_those_written(values, block, indent):
    data = "\n".join(json.dumps(value, indent=indent) for value in values).encode()
    assert [json.loads(piece) for piece in cut(data, block)] == values


def test_a_byte_order_mark_is_skipped():
    assert cut(b"\xef\xbb\xbf[1, 2]", 2) == [b"1", b"2"]


def test_an_element_longer_than_a_read_is_whole(monkeypatch):
    monkeypatch.setattr(json_stream, "READ_BYTES", 16)
    long = json.dumps('é\\"[' * 5000).encode()
    assert cut(b"[" + long + b", " + long + b"]", 1 << 20) == [long, long]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[1, 2", "ends inside a value"),
        (b"[1, ", "ends inside the list"),
        (b'[{"a": "b', "ends inside a value"),
        (b'{"a": [1, 2]', "ends inside a value"),
        (b"[1, , 2]", "want a value"),
        (b"[1, 2] 3", "after the list"),
        (b"[}, 2]", "found '}'"),
        (b'{"a": 1} x', "want an object"),
        (b"7", "want an object or a list"),
    ],
)
def test_broken_structure_is_refused_with_the_byte(data, says):
    with pytest.raises(FormatError, match=r"f\.json: byte \d+") as error:
        cut(data, 3)
    assert says in str(error.value)


@pytest.mark.parametrize("depth", range(1, 9))
def test_values_of_any_depth_are_whole(depth):
    value = "[" * depth + '{"a": "]}"}' + "]" * depth
    assert cut(f"[{value}, {value}]".encode(), 7) == [value.encode()] * 2
    assert cut(f'{{"a": {value}}} {{"b": {value}}}'.encode(), 1 << 20) == [
        f'{{"{key}": {value}}}'.encode() for key in "ab"
    ]


@settings(deadline=None, max_examples=500)
@given(data=st.text('{}[]",:\\ 1a').map(str.encode), block=st.integers(1, 40))
def test_the_quick_way_finds_what_the_slow_one_finds(data, block):
    """Of sound and of broken structure, with every error."""

    def found():
        try:
            return cut(data, block)
        except FormatError as error:
            return str(error)

    quick = found()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_USUAL_VALUE", "_USUAL_ELEMENT"):
            patch.setattr(json_stream, name, re.compile(b"(?!)"))
        assert found() == quick
