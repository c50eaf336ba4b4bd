"""Tests the size of values as they are read: the migration that bounds it, and the column that knows it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from shutil import copy

import asyncpg
import pytest

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.storage.migrate import migrate
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.schema_check import DIRECTORY
from tests.support.databases import DatabaseUrls, create_database, drop_database
from tests.support.seed import rows_of

pytestmark = pytest.mark.store

APP_LOGIN = "syncbeat_app"
LARGEST = Decimal("1.7976931348623157e308")

# What is stored, and what is left of it: as it is written, except numbers that are out of bounds.
STORED = {
    "kept": ('{"a": [1.50, 0.000, -7, 1e40, null, "1e400", true], "b": {}, "c": []}', None),
    "kept long": (json.dumps({"digits": "1234567890" * 20, "n": 12}), None),
    "kept large": (json.dumps([{"n": n, "text": "x" * 50} for n in range(2_000)]), None),
    "34 digits": ("1234567890123456789012345678901234", None),
    "most": ("9.999e308", None),
    "too large": ('{"a": 1e400, "b": {"c": [-1e400]}}', {"a": LARGEST, "b": {"c": [-LARGEST]}}),
    "too small": ("[1e-16000, -1e-16000, 1e-320]", [Decimal(0)] * 3),
    "zeros": ("[0e-16000, 0.0]", [Decimal(0), Decimal("0.0")]),
    "digits": ("[0.12345678901234567890123456789012345678901]", [Decimal("0.12345678901234568")]),
    "scale": ("1." + "0" * 10_000, Decimal(1)),
    "whole digits": ("9" * 40, Decimal("1e40")),
    "many": ("[" + ",".join(["1e-16000"] * 900) + "]", [Decimal(0)] * 900),
    "beyond what can be printed": ("[" + ",".join(["1e131000"] * 10_000) + "]", [LARGEST] * 10_000),
}


@pytest.fixture
async def before(stores: EmbeddedStores, tmp_path: Path) -> AsyncIterator[DatabaseUrls]:
    """A database of the version before, with these values in it."""
    urls = await create_database(stores, "before_octets")
    for file in sorted(DIRECTORY.glob("*.sql")):
        if file.name.endswith("_octets.sql"):
            break
        copy(file, tmp_path)
    await migrate(urls.owner_url, app_login=APP_LOGIN, directory=tmp_path)
    conn = await asyncpg.connect(urls.admin_url)
    await conn.execute("INSERT INTO scopes (app_id, scope, created_at) VALUES ('default', 's', now())")
    await conn.executemany(
        "INSERT INTO changes VALUES ('default', 's', $1, $2::text::jsonb, false, $3, now())",
        [(key, text, place) for place, (key, (text, _)) in enumerate(STORED.items())],
    )
    await conn.execute("INSERT INTO changes VALUES ('default', 's', 'gone', NULL, true, 100, now())")
    await conn.close()
    yield urls
    await drop_database(stores, urls.name)


async def test_migration_rewrites_numbers_out_of_bounds_and_keeps_the_rest_to_the_letter(
    before: DatabaseUrls, caplog: pytest.LogCaptureFixture
) -> None:
    conn = await asyncpg.connect(before.admin_url)
    kept = {key: text for key, (text, left) in STORED.items() if left is None}
    rows = "SELECT key, value::text, octets FROM changes WHERE value IS NOT NULL"
    as_text = "SELECT key, value::text FROM changes WHERE key = ANY($1::text[])"
    written = {key: text for key, text in await conn.fetch(as_text, list(kept))}  # noqa: C416  # records are no pairs
    with caplog.at_level(logging.WARNING):
        await migrate(before.owner_url, app_login=APP_LOGIN)
    for key, text, octets in await conn.fetch(rows):
        assert octets == len(text.encode())
        left = STORED[key][1]
        if left is None:
            assert text == written[key]
        else:
            read = json.loads(text, parse_float=Decimal, parse_int=Decimal)
            assert read == left, key
            assert max(len(digits) for digits in text.replace("]", ",").split(",")) < 330
    assert await conn.fetchval("SELECT octets FROM changes WHERE key = 'gone'") == 0
    told = [record.getMessage() for record in caplog.records if "rewrote" in record.getMessage()]
    assert len(told) == len(STORED) - len(kept)
    assert all("scope 's'" in line for line in told)
    assert any("key 'too large'" in line for line in told)
    await conn.close()


async def test_migration_leaves_row_security_in_force(before: DatabaseUrls) -> None:
    await migrate(before.owner_url, app_login=APP_LOGIN)
    conn = await asyncpg.connect(before.owner_url)
    assert await conn.fetchval("SELECT relforcerowsecurity FROM pg_class WHERE relname = 'changes'") is True
    await conn.close()


async def test_value_still_too_large_can_be_read_deleted_and_shrunk(before: DatabaseUrls) -> None:
    await migrate(before.owner_url, app_login=APP_LOGIN)
    conn = await asyncpg.connect(before.admin_url)
    key = "beyond what can be printed"
    assert await conn.fetchval("SELECT octets FROM changes WHERE key = $1", key) > 1 << 20
    await conn.execute("UPDATE changes SET value = '[1]' WHERE key = $1", key)
    assert await conn.fetchval("SELECT octets FROM changes WHERE key = $1", key) == 3
    with pytest.raises(asyncpg.CheckViolationError):
        await conn.execute("UPDATE changes SET value = to_jsonb(repeat('x', 1048576)) WHERE key = $1", key)
    await conn.close()


async def test_value_octets_are_right_for_earlier_servers(database: Database) -> None:
    async with database.connection() as conn:
        await conn.execute("INSERT INTO scopes (app_id, scope, created_at) VALUES ('default', 's', now())")
        old = """INSERT INTO changes AS c (app_id, scope, key, value, deleted, sequence, changed_at)
                 VALUES ('default', 's', 'k', $1::text::jsonb, $1::text IS NULL, $2, now())
                 ON CONFLICT (app_id, scope, key) DO UPDATE SET value = excluded.value, deleted = excluded.deleted,
                     sequence = excluded.sequence, changed_at = excluded.changed_at"""
        for sequence, value in enumerate(['{"a": 1e308}', None, '"é"'], start=1):
            await conn.execute(old, value, sequence)
            octets = await rows_of(database, "SELECT octets, coalesce(octet_length(value::text), 0) FROM changes")
            assert octets[0][0] == octets[0][1]
    assert await rows_of(database, "SELECT octets FROM changes") == [(4,)]


def test_number_nearest_finite_double_matches_python() -> None:
    assert float(LARGEST) == math.nextafter(math.inf, 0)
