"""Numbers of an export are bounded before its parser, which would end the process, sees them."""

from __future__ import annotations

import io
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbeat_server.transfer.bounded_numbers import MAX_RUN, BoundedNumbers

pytestmark = pytest.mark.unit

_PARTS = st.sampled_from(
    [
        '"',
        "\\",
        '\\"',
        "\\\\",
        "7" * (MAX_RUN - 1),
        "0" * (MAX_RUN + 1),
        "8" * 5_000,
        "5",
        "-",
        ".",
        "e",
        ",",
        "é",
        "[",
        " ",
    ]
)


def bounded(text: str, size: int) -> str:
    reader = BoundedNumbers(io.BytesIO(text.encode()))
    return b"".join(iter(lambda: reader.read(size), b"")).decode()


def runs(text: str) -> list[str]:
    """Return the runs of digits outside of strings, found octet by octet."""
    bare, in_string, escaped = "", False, False
    for character in text:
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
            bare += " "
        else:
            bare += character
    return re.findall("[0-9]+", bare)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PARTS, max_size=12), st.sampled_from([1_000, 1_001, 1_500, 4_096, 1 << 17]), st.booleans())
def test_runs_of_digits_are_bounded_wherever_a_buffer_ends(parts: list[str], size: int, is_in_string: bool) -> None:
    text = '"' * is_in_string + "".join(parts)
    if "\\" in re.sub(r'"(?:[^"\\]|\\.)*+("|\\?$)', "", text):
        return  # no JSON: a backslash outside of strings
    found = bounded(text, size)
    assert max(map(len, runs(found)), default=0) <= MAX_RUN + 1
    if max(map(len, runs(text)), default=0) <= MAX_RUN:
        assert found == text
    long = [(place, run) for place, run in enumerate(runs(text)) if len(run) > MAX_RUN]
    assert all(len(runs(found)[place]) == MAX_RUN + 1 and "1" in runs(found)[place] for place, _ in long)
    assert re.sub("[0-9]+", "", found) == re.sub("[0-9]+", "", text), "nothing but digits has changed"


@pytest.mark.parametrize("size", [1_000, 1_234, 1 << 17])
def test_long_number_is_bounded_and_the_text_around_it_is_left(size: int) -> None:
    digits = "9" * (1 << 20)
    text = f'{{"a\\"1": "{digits}\\\\", "b": -{digits}, "c": [1.{digits}, 1e-{digits}], "d": "{digits}"}}'
    found = bounded(text, size)
    pattern = re.sub("9+", "[19]+", re.escape(text))
    assert re.fullmatch(pattern, found)
    assert [len(run) for run in runs(found)] == [1_001, 1, 1_001, 1, 1_001]
    assert re.findall(rf"{digits}", found) == [digits, digits], "those of strings"


def test_text_without_long_numbers_passes_at_speed() -> None:
    text = b'{"key": "value", "n": 1234567890123},' * 400_000
    reader, started = BoundedNumbers(io.BytesIO(text)), time.thread_time()
    while reader.read(1 << 17):
        pass
    assert time.thread_time() - started < 1.0, "15 MB, of which parsing takes longer"
