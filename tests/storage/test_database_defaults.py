"""Defaults that an administrator or a provider sets for the database change nothing of what the service does."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from syncbeat_server.events.publish import Publish
from syncbeat_server.push.store import queue
from syncbeat_server.storage.postgres import database as product
from syncbeat_server.sync.model import Activity, Cursor, NewChange
from tests.support.build import APP, PHONE, SyncFeature
from tests.support.databases import DatabaseUrls, open_database, run_sql
from tests.support.fake_clock import FakeClock
from tests.support.seed import accept, claim, couple, message, rows_of, value_of
from tests.support.sync_streams import keys

pytestmark = pytest.mark.store

DEFAULTS = [
    "default_transaction_isolation = 'serializable'",
    "default_transaction_isolation = 'repeatable read'",
    "default_transaction_deferrable = on",
    "statement_timeout = '8s'",
    "lock_timeout = '30s'",
    "idle_in_transaction_session_timeout = 0",
    "timezone = 'Asia/Kathmandu'",
    "datestyle = 'German, DMY'",
    "intervalstyle = 'sql_standard'",
    "bytea_output = 'escape'",
    "extra_float_digits = 0",
    "standard_conforming_strings = off",
    "jit_above_cost = 0",
    "enable_nestloop = off",
    "plan_cache_mode = 'force_generic_plan'",
    "synchronous_commit = off",
]


def publish(number: int, scope: str) -> Publish:
    changes = (NewChange(scope, f"key-{number % 3}", f'{{"n": {number}}}'),)
    digest = hashlib.sha256(repr(changes).encode()).digest()
    return Publish(APP, "service:test", changes, None, None, f"request-{number}", digest)


@pytest.mark.parametrize("default", DEFAULTS)
async def test_database_default_of_others_changes_nothing(
    database_urls: DatabaseUrls, clock: FakeClock, default: str
) -> None:
    await run_sql(database_urls.admin_url, f"ALTER DATABASE {database_urls.name} SET {default}")
    async with (
        open_database(database_urls.app_url, size=4, name="one") as one,
        open_database(database_urls.app_url, size=4, name="two") as two,
    ):
        await couple(one)
        # Two processes publish to the same scopes, a batch after the other.
        both = [SyncFeature(one, clock), SyncFeature(two, clock)]
        published = await asyncio.gather(
            *(both[n % 2].publisher.publish(publish(n, f"room-{n % 2}")) for n in range(120))
        )
        for scope in ("room-0", "room-1"):
            sequences = sorted(p.sequences[0] for p in published if p.heads[0].scope == scope)
            assert sequences == list(range(1, 61))
            page = await both[0].page(Cursor(scope))
            assert len(keys(page)) == 3
        # What is one statement outside a transaction, from both at once.
        await asyncio.gather(*(both[n % 2].service.report_activity(PHONE, Activity(), is_user=True) for n in range(40)))
        await asyncio.gather(*(_note(both[n % 2], n) for n in range(10)))
        await accept(one, *(message() for _ in range(5)))
        assert len(await claim(two, "00000000-0000-0000-0000-000000000001")) == 5
        async with two.connection() as conn:
            await queue.release(conn, ["00000000-0000-0000-0000-000000000001"])


async def _note(sync: SyncFeature, number: int) -> None:
    state = await sync.publish("key", scope="couple")
    sync.cursors.record_shown(PHONE, [state])
    sync.cursors.record_fetched(PHONE, [state])
    await sync.cursors.flush()


async def test_database_default_isolation_does_not_apply_to_single_statements(database_urls: DatabaseUrls) -> None:
    isolation = "SELECT current_setting('transaction_isolation')"
    name = database_urls.name
    await run_sql(database_urls.admin_url, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    async with open_database(database_urls.app_url, size=1, name="strict") as database:
        assert await value_of(database, isolation) == "read committed"
        async with database.transaction() as conn:
            assert await conn.fetchval(isolation) == "read committed"
        async with database.connection() as conn:
            # Each is a transaction of its own, as elsewhere: what fails takes nothing of the others with it.
            await conn.execute("INSERT INTO scopes (app_id, scope, created_at) VALUES ('a', 's', now())")
            with pytest.raises(Exception, match="rejected"):
                await conn.execute("SELECT 1 / 0")
            assert await conn.fetchval("SELECT count(*) FROM scopes") == 1
        assert await rows_of(database, "SELECT scope FROM scopes") == [("s",)]


@pytest.mark.parametrize(
    "setting",
    ["idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout", "transaction_timeout"],
)
async def test_transaction_timeouts_are_set(database_urls: DatabaseUrls, setting: str) -> None:
    value = "SELECT setting::int FROM pg_settings WHERE name = $1"
    async with product.open_database(database_urls.app_url, size=1, name="as shipped") as database:
        async with database.transaction() as conn:
            milliseconds: Any = await conn.fetchval(value, setting)
        assert 0 < milliseconds <= 10_000
        assert await value_of(database, value, setting) == 0
