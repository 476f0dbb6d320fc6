from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.json_stream import JsonStream

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=10)
CHUNKS = st.integers(1, 20)


def read_whole(stream: JsonStream, value: Any) -> Any:
    """What the stream holds, read by the method for values like `value`."""
    if isinstance(value, dict):
        return {key: read_whole(stream, value[key]) for key in stream.fields()}
    return list(stream.elements()) if isinstance(value, list) else stream.value()


@given(VALUES, CHUNKS, st.sampled_from([None, 1]))
def test_a_value_is_read_in_pieces_as_it_was_written(value: Any, chunk: int, indent: int | None) -> None:
    stream = JsonStream(io.StringIO(json.dumps(value, indent=indent)), chunk)
    assert read_whole(stream, value) == value
    stream.end()


@given(VALUES, CHUNKS)
def test_what_is_skipped_is_gone(value: Any, chunk: int) -> None:
    stream = JsonStream(io.StringIO(json.dumps({"skipped": value, "read": 12})), chunk)
    for key in stream.fields():
        if key == "read":
            assert stream.value() == 12
        else:
            stream.skip()
    stream.end()


@given(st.lists(VALUES, min_size=1), CHUNKS, st.data())
def test_a_text_that_was_cut_is_refused(value: list[Any], chunk: int, data: st.DataObject) -> None:
    text = json.dumps(value)
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(ValueError, match="character"):
        list(JsonStream(io.StringIO(text[:cut]), chunk).elements())


@pytest.mark.parametrize("text", ["nonsense", "{1: 2}", '{"a" 1}', '{"a": 1 "b": 2}', "[1]", '{"a": 1,}', "{} {}", ""])
def test_what_is_no_object_is_refused_with_the_place(text: str) -> None:
    stream = JsonStream(io.StringIO(text))
    with pytest.raises(ValueError, match=r"character \d+: "):
        for _ in stream.fields():
            stream.value()
        stream.end()


def test_no_more_is_read_than_is_asked_for() -> None:
    file = io.StringIO(json.dumps([{"index": index} for index in range(10_000)]))
    stream = JsonStream(file, chunk=1000)
    for index, element in enumerate(stream.elements()):
        assert element == {"index": index}
        assert file.tell() < 20 * index + 3000  # no further than a few chunks ahead
