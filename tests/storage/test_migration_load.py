"""Migrations beside many rows under load: each registered one passes, and the harness sees one that does not."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.storage.schema_check import read_migrations
from tests.support.databases import DatabaseUrls, create_database, drop_database
from tests.support.migration_load import MOST_LOCKED_S, measure, schema_before
from tools.migration_registry import MIGRATIONS, load_registry

pytestmark = [pytest.mark.store, pytest.mark.slow]

ROWS = 100_000
REGISTERED = load_registry()


@pytest.fixture
async def empty(stores: EmbeddedStores) -> AsyncIterator[DatabaseUrls]:
    """A database without tables."""
    name = f"migration_{uuid.uuid4().hex[:12]}"
    yield await create_database(stores, name)
    await drop_database(stores, name)


@pytest.mark.parametrize("entry", REGISTERED, ids=lambda entry: str(entry.file.stem))
async def test_migration_makes_nobody_wait(empty: DatabaseUrls, tmp_path: Path, entry: object) -> None:
    found = next(one for one in REGISTERED if one is entry)
    before = schema_before(MIGRATIONS, tmp_path / "before", found.file.name)
    figures = await measure(empty, before, found.file, found.tables, ROWS)
    assert figures.longest_s <= MOST_LOCKED_S, figures
    assert figures.statements > 0


async def test_migration_that_holds_a_lock_is_found(empty: DatabaseUrls, tmp_path: Path) -> None:
    bad = tmp_path / f"{read_migrations()[-1].version + 1:04}_bad.sql"
    bad.write_text("ALTER TABLE changes ADD COLUMN x text; SELECT pg_sleep(1.5);")
    before = schema_before(MIGRATIONS, tmp_path / "before", bad.name)
    figures = await measure(empty, before, bad, ["changes"], 1_000)
    assert figures.longest_s > MOST_LOCKED_S
    assert not figures.passes
