"""New migrations: each beside ten million rows under load, and the server of before it on the schema after it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.revision import UnusableRevision, build_revision, resolve_commit
from syncbeat_devtools.demo.stage import Stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls, create_database, drop_database
from tests.support.migration_load import measure, schema_before
from tests.support.smoke_calls import smoke
from tools.migration_registry import MIGRATIONS, RegisteredMigration, load_registry

pytestmark = pytest.mark.prove

ROWS = int(os.environ.get("MIGRATION_ROWS", "10000000"))
REGISTERED = load_registry()
Record = Callable[[str, dict[str, object]], None]


@pytest.fixture
async def empty(stores: EmbeddedStores) -> AsyncIterator[DatabaseUrls]:
    """A database without tables."""
    name = f"migration_{uuid.uuid4().hex[:12]}"
    yield await create_database(stores, name)
    await drop_database(stores, name)


def short(entry: RegisteredMigration) -> str:
    return entry.file.stem


@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("entry", REGISTERED, ids=short)
async def test_migration_beside_ten_million_rows_makes_nobody_wait(
    empty: DatabaseUrls, tmp_path: Path, entry: RegisteredMigration, record: Record
) -> None:
    before = schema_before(MIGRATIONS, tmp_path / "before", entry.file.name)
    figures = await measure(empty, before, entry.file, entry.tables, ROWS)
    assert figures.passes, figures
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(figures).items()}
    record(f"migration-{entry.file.stem.partition('_')[2]}", rounded)


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("commit", sorted({entry.before for entry in REGISTERED}))
async def test_earlier_server_runs_on_the_newest_schema(stage: Stage, commit: str) -> None:
    try:
        side = await asyncio.to_thread(build_revision, resolve_commit(commit))
    except UnusableRevision as error:
        pytest.fail(str(error))
    await smoke(stage, str(side.python))
