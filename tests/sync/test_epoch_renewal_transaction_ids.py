"""After a restore into a cluster with lower transaction numbers: what a dump brought is of old, however much it is."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import Overloaded
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.epoch_renewal import RenewalRule, renew_epochs
from tests.support.build import SyncFeature
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import couple, rows_of, value_of

pytestmark = pytest.mark.store

FAR = 4_611_686_018_427_387_905


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    return SyncFeature(database, clock)


async def fill(urls: DatabaseUrls, scopes: int, keys: int, app: str = "default") -> None:
    """As restored from a cluster that was far ahead."""
    await run_sql(
        urls.admin_url,
        f"""INSERT INTO scopes (app_id, scope, created_at, head)
            SELECT '{app}', 's' || n, now(), {keys} FROM generate_series(1, {scopes}) n""",
        f"""INSERT INTO changes (app_id, scope, key, value, sequence, changed_at, xid)
            SELECT '{app}', 's' || n, 'k' || k, '{{"a":1}}', k, now(), '{FAR}'
            FROM generate_series(1, {scopes}) n, generate_series(1, {keys}) k""",
        "ANALYZE scopes, changes",
    )


async def test_new_epochs_rewrite_restored_changes_in_bounded_batches(
    sync: SyncFeature, database_urls: DatabaseUrls
) -> None:
    rule = RenewalRule(rows=1_000)
    await fill(database_urls, 100, 120)
    await fill(database_urls, 10, 50, "other")
    await run_sql(
        database_urls.admin_url,
        "CREATE TABLE written (rows bigint)",
        "GRANT INSERT ON written TO PUBLIC",
        """CREATE FUNCTION note_written() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN INSERT INTO written SELECT count(*) FROM fresh; RETURN NULL; END $$""",
        """CREATE TRIGGER note_written AFTER UPDATE ON changes REFERENCING NEW TABLE AS fresh
           FOR EACH STATEMENT EXECUTE FUNCTION note_written()""",
    )
    assert (await renew_epochs(sync.database, sync.clock, "other", rule=rule))[0] == 10
    assert await left(sync) == 12_000, "the other app's are its own affair"
    assert (await renew_epochs(sync.database, sync.clock, None, rule=rule))[0] == 111
    assert await left(sync) == 0
    conn = await asyncpg.connect(database_urls.admin_url)
    sizes = [row["rows"] for row in await conn.fetch("SELECT rows FROM written WHERE rows > 0")]
    await conn.close()
    assert (max(sizes), sum(sizes)) == (1_000, 12_500)


async def test_new_epochs_find_restored_changes_whose_number_comes_up(
    sync: SyncFeature, database_urls: DatabaseUrls
) -> None:
    await fill(database_urls, 1, 30)
    await run_sql(
        database_urls.admin_url, "UPDATE changes SET xid = (pg_current_xact_id()::text::bigint + 20)::text::xid8"
    )
    await renew_epochs(sync.database, sync.clock, None, rule=RenewalRule(rows=1))
    assert await rows_of(sync.database, "SELECT DISTINCT xid::text FROM changes") == [("0",)]


async def test_new_epochs_spare_concurrent_writes_and_wait_for_no_lock(
    sync: SyncFeature, database_urls: DatabaseUrls
) -> None:
    await fill(database_urls, 2, 3)
    holder = await asyncpg.connect(database_urls.admin_url)
    try:
        await holder.execute("BEGIN; SELECT FROM changes WHERE scope = 's1' AND key IN ('k1', 'k2') FOR UPDATE")
        running = asyncio.ensure_future(renew_epochs(sync.database, sync.clock, None))
        await wait_until(lambda: sync.clock.sleepers)
        assert await left(sync) == 2
        await sync.publish("k1", "new", scope="s2")
        await holder.execute(
            "UPDATE changes SET sequence = 4, xid = pg_current_xact_id() WHERE scope = 's1' AND key = 'k1'; COMMIT"
        )
        while not running.done():
            await sync.clock.advance(1.0)
        await running
    finally:
        await holder.close()
    ours = await rows_of(sync.database, "SELECT scope, key FROM changes WHERE xid > '0' ORDER BY scope, key")
    assert ours == [("s1", "k1"), ("s2", "k1"), ("s2", "new")]


async def test_new_epochs_give_up_on_a_change_that_stays_locked(sync: SyncFeature, database_urls: DatabaseUrls) -> None:
    await fill(database_urls, 1, 2)
    holder = await asyncpg.connect(database_urls.admin_url)
    try:
        await holder.execute("BEGIN; SELECT FROM changes WHERE key = 'k1' FOR UPDATE")
        with pytest.raises(Overloaded):
            await renew_epochs(sync.database, SystemClock(), None, rule=RenewalRule(tries=2, pause_s=0.0))
    finally:
        await holder.close()


async def left(sync: SyncFeature) -> int:
    """Return how many changes have a number that this cluster does not come to."""
    return int(await value_of(sync.database, f"SELECT count(*) FROM changes WHERE xid = '{FAR}'"))
