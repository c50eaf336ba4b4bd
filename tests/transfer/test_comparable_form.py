"""Values are compared as the Realtime Database takes them: exactly, but for spellings of one value."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.transfer.compare.comparable_form import comparable, digest
from syncbeat_server.transfer.compare.inner_paths import differing_paths

pytestmark = pytest.mark.unit

SAME = (
    ("1", "1.0", "1e0", "10e-1", "0.1e1"),
    ("0", "-0", "-0.0", "0e7", "1e-400"),
    ("0.1", "0.10000000000000000555", "1e-1"),
    ("9007199254740993", "9007199254740993.0"),
    ("9007199254740994", "9007199254740993.5"),
    ("1.2345678901234567e17", "123456789012345670"),
    ("9223372036854775807", "9223372036854775807.0"),
    ("-9223372036854775808", "-9.223372036854775808e18"),
    ("1e21", "1000000000000000000000", "1.0E+21"),
    ("9223372036854775808", "9223372036854775809"),
    ('{"a":1,"b":2}', '{"b":2.0,"a":1}'),
    ('["x","y"]', '{"0":"x","1":"y"}', '{"1":"y","0":"x"}'),
    ("[null,1]", '{"1":1}', '{"1":1,"2":null}'),
    ('{"a":{"0":{"b":[true]}}}', '{"a":[{"b":{"0":true}}]}'),
    ('"é"', '"\\u00e9"'),
    ('"😀"', '"\\ud83d\\ude00"'),
    ("[null]", "{}", '{"a":null}'),
)
DIFFERENT = (
    ("9007199254740993", "9007199254740992"),
    ("1", '"1"', "true"),
    ("0", "false", "null", '""'),
    ("1", "1.0000000000000002"),
    ('"é"', '"e\\u0301"'),
    ("{}", "[]", "null", '""'),
    ('{"a":{}}', '{"a":[]}', "{}", '{"a":""}'),
    ("[[]]", "[{}]", "[]"),
    ('{"1":1}', '{"01":1}', '{"1.0":1}'),
    ("1e400", "1e401", "1.7976931348623157e308"),
    ('"a"', '"A"', '"a "', '"a\\u200b"'),
    ('"\\ud800"', '"\\ud801"', '"\\ufffd"'),
)


@pytest.mark.parametrize("texts", SAME, ids=lambda texts: texts[0])
def test_comparable_form_is_one_for_spellings_of_a_value(texts: tuple[str, ...]) -> None:
    assert len({comparable(text) for text in texts}) == 1


@pytest.mark.parametrize("texts", DIFFERENT, ids=lambda texts: texts[0])
def test_comparable_form_tells_values_apart(texts: tuple[str, ...]) -> None:
    assert len({comparable(text) for text in texts}) == len(texts)
    assert len({digest(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("here", "there", "paths"),
    [
        ('{"a":1,"b":{"c":[1,2]}}', '{"a":1.0,"b":{"c":{"0":1,"1":3},"d":null}}', [("b", "c", "1")]),
        ('{"a":1,"b":2}', '{"a":true,"c":2}', [("a",), ("b",), ("c",)]),
        ("1", '"1"', [()]),
        ('{"a":{}}', '{"a":{"b":{}}}', [("a", "b")]),
        ('{"a":{}}', '{"a":[]}', [("a",)]),
        (json.dumps({str(n): n for n in range(9)}), "{}", [(str(n),) for n in range(5)]),
    ],
)
def test_differing_paths_are_the_deepest(here: str, there: str, paths: list[tuple[str, ...]]) -> None:
    assert differing_paths(here, there) == paths


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "{", ""])
def test_comparable_form_refuses_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        comparable(text)


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_comparable_form_keeps_each_integer_of_64_bits(number: int) -> None:
    assert comparable(str(number)) == comparable(f"{number}.000") == str(number).encode()
    assert comparable(f"{Decimal(number):e}") == str(number).encode()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_comparable_form_is_that_of_the_nearest_double(number: float) -> None:
    exact = comparable(json.dumps(number))
    assert comparable(f"{Decimal(number):f}") == comparable(f"{number:.17g}") == exact or abs(number) >= 2**53


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), inner, max_size=4)
    ),
)


@given(_VALUES)
def test_comparable_form_does_not_depend_on_spelling(value: object) -> None:
    plain = comparable(json.dumps(value))
    assert comparable(json.dumps(value, ensure_ascii=False, indent=1)) == plain
    assert comparable(plain.decode()) == plain
