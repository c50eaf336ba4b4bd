"""The size that is computed of a value is that which PostgreSQL has it in: what is let through fits."""

from __future__ import annotations

import functools
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncbeat_server.defaults import VALUE_OCTETS
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.transfer.importing.batches import checked_text
from syncbeat_server.transfer.importing.stored_size import MAY_PASS_OCTETS, stored_octets, text_octets
from syncbeat_server.transfer.model import Json
from syncbeat_server.transfer.rtdb.shapes import json_text

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database")]

_DIGITS = st.integers(-(10**34) + 1, 10**34 - 1)
_DECIMALS = st.builds(
    lambda digits, power: Decimal(digits).scaleb(power), st.integers(-9999, 99999), st.integers(-300, 300)
)
_NUMBERS = st.one_of(
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.sampled_from(
        [0, 1, 10_000, Decimal("-0.0"), Decimal("1.50"), Decimal("0E-70"), Decimal("1E+256"), Decimal("1E+260")]
    ),
    _DIGITS.map(Decimal),
    _DECIMALS,
)
_TEXTS = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=6)
_VALUES: st.SearchStrategy[Json] = st.recursive(
    st.one_of(_NUMBERS, _TEXTS, st.booleans()),
    lambda inner: st.dictionaries(_TEXTS.filter(bool), inner, min_size=1, max_size=5),
    max_leaves=12,
)


async def sizes(database: Database, text: str) -> tuple[int, int]:
    async with database.connection() as conn:
        row = await conn.fetchrow(
            "SELECT pg_column_size(v) AS stored, octet_length(v::text) AS text FROM (SELECT $1::jsonb AS v) s", text
        )
    assert row is not None
    return row["stored"], row["text"]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=_VALUES)
async def test_sizes_are_those_of_postgresql(database: Database, value: Json) -> None:
    text = json_text(value)
    assert (stored_octets(value), text_octets(value)) == await sizes(database, text), text


def _many(member: Json, count: int) -> Json:
    return {f"{number:05}": member for number in range(count)}


def _long(character: str, count: int) -> Json:
    return {"text": character * count}


@pytest.mark.parametrize(
    "build",
    [
        functools.partial(_many, 1),
        functools.partial(_many, "x" * 30),
        functools.partial(_many, {"a": True}),
        functools.partial(_long, "x"),
        functools.partial(_long, '"'),
    ],
    ids=["numbers", "texts", "objects", "text", "quotes"],
)
async def test_what_is_let_through_is_what_fits(database: Database, build: functools.partial[Json]) -> None:
    few, more = (max(stored_octets(build(count)), text_octets(build(count))) for count in (1_000, 2_000))
    most = 1_000 + (VALUE_OCTETS - few) * 1_000 // (more - few)
    let_through = []
    for count in range(most - 1, most + 3):
        text = json_text(build(count))
        let_through.append(checked_text(build(count)) == text)
        assert let_through[-1] == (max(await sizes(database, text)) <= VALUE_OCTETS)
    assert set(let_through) == {True, False}


def test_no_text_below_the_bound_is_stored_in_more_than_the_limit() -> None:
    dense: Json = {chr(33 + number): 1 for number in range(90) if chr(33 + number) not in '"\\'}
    assert stored_octets(dense) / len(json_text(dense)) < VALUE_OCTETS / MAY_PASS_OCTETS
    nested: Json = {chr(33 + number): {"a": 1} for number in range(90) if chr(33 + number) not in '"\\'}
    assert stored_octets(nested) / len(json_text(nested)) < VALUE_OCTETS / MAY_PASS_OCTETS
