"""Stored values are spelled shorter for readers, and stay the same to the last digit."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.sync.content.json_limits import document_fault
from syncbeat_server.sync.content.legacy_numbers import MAX_SENT_OCTETS, shorten_numbers

pytestmark = pytest.mark.unit

_numbers = st.builds(
    lambda digits, scale, sign: format(Decimal((sign, digits, scale)), "f"),
    st.lists(st.integers(0, 9), min_size=1, max_size=34).map(tuple),
    st.integers(-307, 274),
    st.sampled_from([0, 1]),
)
_strings = st.one_of(
    st.text(), st.sampled_from(['"', "\\", '\\"' + "1" + "0" * 60, "1" + "0" * 60, "0." + "0" * 60 + "1"])
)
_documents = st.recursive(
    st.one_of(_numbers, _strings.map(json.dumps), st.sampled_from(["null", "true", "0"])),
    lambda inner: st.one_of(
        st.lists(inner).map(lambda parts: "[" + ", ".join(parts) + "]"),
        st.lists(st.tuples(_strings, inner)).map(
            lambda members: "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in members) + "}"
        ),
    ),
)


def exactly(text: str) -> object:
    def number(digits: str) -> tuple[str, ...]:
        sign, whole, exponent = Decimal(digits).as_tuple()
        return tuple(
            map(str, (sign, Decimal(digits).normalize() if int(exponent) >= 0 else whole, min(int(exponent), 0)))
        )

    return json.loads(text, parse_int=number, parse_float=number)


@given(_documents)
def test_legacy_numbers_keeps_the_value_exactly(text: str) -> None:
    shorter = shorten_numbers(text)
    assert shorter is not None
    assert exactly(shorter) == exactly(text)
    assert len(shorter) <= len(text)


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        ("1" + "0" * 308, "1e308"),
        ("-17976931348623157" + "0" * 292, "-17976931348623157e292"),
        ("0." + "0" * 306 + "1", "1e-307"),
        ("-0." + "0" * 306 + "12", "-12e-308"),
        ("0." + "0" * 307, "0e-307"),
        ("1" + "0" * 308 + ".00", "1e308"),
        ("1" + "0" * 308 + ".5", "1" + "0" * 308 + ".5"),
        ("1" + "0" * 39, "1" + "0" * 39),
        ("1" + "0" * 40, "1e40"),
        ("1." + "0" * 33, "1." + "0" * 33),
        ('{"1' + "0" * 50 + '": [1' + "0" * 50 + ", 2]}", '{"1' + "0" * 50 + '": [1e50, 2]}'),
    ],
)
def test_legacy_numbers_uses_an_exponent_for_long_numbers(text: str, shorter: str) -> None:
    assert shorten_numbers(text) == shorter
    assert document_fault(shorter, 0) in ("", document_fault(text, 0))


def test_legacy_numbers_cannot_shorten_a_too_large_value() -> None:
    control = json.dumps("\x01" * 600_000)
    assert shorten_numbers(control) is None
    assert shorten_numbers(json.dumps("x" * (MAX_SENT_OCTETS - 2))) is not None
    assert shorten_numbers(json.dumps("x" * (MAX_SENT_OCTETS - 1))) is None
    assert shorten_numbers(json.dumps("é" * (MAX_SENT_OCTETS // 2), ensure_ascii=False)) is None
