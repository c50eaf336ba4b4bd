"""An app that was removed is erased from every table, in batches that wait for nobody, and no other app is touched."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.storage.app_erasure import AppErasure, app_tables, apps_with_rows, count_rows
from syncbeat_server.storage.postgres.database import Database
from tests.support.app_rows import PLANTS, count_app_rows, plant_app
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until

pytestmark = pytest.mark.store


async def test_app_tables_are_those_of_the_catalog_children_first(
    database: Database, database_urls: DatabaseUrls
) -> None:
    async with database.connection() as conn:
        names = [table.name for table in await app_tables(conn)]
    assert sorted(names) == sorted(await count_app_rows(database_urls, "any")) == sorted(PLANTS)
    for child, parent in (("changes", "scopes"), ("deliveries", "notifications"), ("sessions", "users")):
        assert names.index(child) < names.index(parent)


async def test_app_erasure_empties_every_table_and_leaves_other_apps(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await plant_app(database_urls, "gone", rows=30)
    await plant_app(database_urls, "gone.not", rows=2)
    planted = await count_app_rows(database_urls, "gone")
    assert all(planted.values()), planted
    others = await count_app_rows(database_urls, "gone.not")
    async with database.connection() as conn:
        for table in await app_tables(conn):
            assert await apps_with_rows(conn, table) == ["gone", "gone.not"]
            assert await count_rows(conn, table, "gone") == planted[table.name]
    done = await AppErasure(database, SystemClock(), "gone", lambda *_: None).run()
    assert done.held == ()
    # Triggers add some of `touches` when devices and members go.
    assert {**done.rows, "touches": planted["touches"]} == planted
    assert not any((await count_app_rows(database_urls, "gone")).values())
    assert await count_app_rows(database_urls, "gone.not") == others


async def test_app_erasure_deletes_in_batches_and_goes_on_where_it_was_stopped(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await plant_app(database_urls, "gone", rows=2_500)
    told: list[tuple[str, int]] = []

    def stop_after_two(table: str, rows: int) -> None:
        told.append((table, rows))
        if len(told) == 2:
            raise KeyError(table)

    with pytest.raises(KeyError):
        await AppErasure(database, SystemClock(), "gone", stop_after_two).run()
    left = sum((await count_app_rows(database_urls, "gone")).values())
    done = await AppErasure(database, SystemClock(), "gone", lambda table, rows: told.append((table, rows))).run()
    assert sum(done.rows.values()) >= left
    assert not any((await count_app_rows(database_urls, "gone")).values())
    per_batch = [
        rows - before for (table, rows), (same, before) in zip(told[3:], told[2:], strict=False) if table == same
    ]
    assert per_batch
    assert max(per_batch) <= 1_000


async def test_app_erasure_skips_rows_that_are_held_and_returns_for_them(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await plant_app(database_urls, "gone", rows=3)
    holder = await asyncpg.connect(database_urls.admin_url)
    try:
        async with asyncio.TaskGroup() as group:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("SELECT FROM preferences WHERE app_id = 'gone' AND user_id = 'u2' FOR UPDATE")
            erasing = group.create_task(AppErasure(database, SystemClock(), "gone", lambda *_: None).run())

            async def only_the_held_row_is_left() -> bool:
                left = {name: rows for name, rows in (await count_app_rows(database_urls, "gone")).items() if rows}
                return left == {"preferences": 1}

            await wait_until(only_the_held_row_is_left)
            assert not erasing.done()
            await transaction.rollback()
        assert erasing.result().held == ()
    finally:
        await holder.close()
    assert not any((await count_app_rows(database_urls, "gone")).values())
