"""Old rows go, of every kind, as fast as they come, and by the indexes made for that."""

from __future__ import annotations

from typing import Any

import pytest

from syncbeat_server.auth.sessions.expired_sessions import OLD_ROWS
from syncbeat_server.auth.store import sessions as auth
from syncbeat_server.clock import SystemClock
from syncbeat_server.directory.store import dead_token_removal, token_move_rows
from syncbeat_server.errors import DependencyDown
from syncbeat_server.push.delivery import maintenance
from syncbeat_server.push.store import dedupe_windows, lifecycle
from syncbeat_server.storage import idempotency, retention
from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.storage.retention import BEGINNING, DeletedBatch, Retention, RetentionRule
from syncbeat_server.sync.feed import tombstone_pruning
from syncbeat_server.sync.store import change_samples, device_cursors, invalidations
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.seed import rows_of, value_of

pytestmark = pytest.mark.store

OLD, FRESH = 3_500, 20
# As the superuser, and as a replica would write them: without their triggers and references.
_PLANT = (
    "SET session_replication_role = replica",
    """INSERT INTO request_records (app_id, caller, rpc, request_id, content_hash, created_at)
       SELECT 'default', 'c', 'r', 'q' || n, '', {at} FROM generate_series({first}, {last}) n""",
    """INSERT INTO notifications (app_id, notification_id, kind, caller, content, priority, created_at, due_at,
                                  expires_at)
       SELECT 'default', lpad(n::text, 32, '0')::uuid, 'MESSAGE', 'c', '{{}}', 'HIGH', {at}, {at}, {at}
       FROM generate_series({first}, {last}) n""",
    """INSERT INTO deliveries (app_id, notification_id, user_id, device_id, state, priority, due_at, expires_at,
                               created_at, updated_at)
       SELECT 'default', lpad(n::text, 32, '0')::uuid, 'u', 'd', 'SENT', 0, {at}, {at}, {at}, {at}
       FROM generate_series({first}, {last}) n""",
    """INSERT INTO dedupe_windows (app_id, user_id, device_id, dedupe_key, trails, opened_by, window_until, duration)
       SELECT 'default', 'u', 'd', 'k' || n, false, gen_random_uuid(), {at}, interval '1 minute'
       FROM generate_series({first}, {last}) n""",
    """INSERT INTO token_moves (app_id, token_digest, from_user_id, from_device_id, to_user_id, to_device_id, caller,
                                moved_at)
       SELECT 'default', '', 'u', 'd', 'v', 'd', 'c', {at} FROM generate_series({first}, {last}) n""",
    """INSERT INTO token_removals (app_id, token_digest, user_id, device_id, removed_at)
       SELECT 'default', '', 'u', 'd', {at} FROM generate_series({first}, {last}) n""",
    """INSERT INTO sessions (app_id, user_id, generation, created_at, refreshed_at, idle_until, expires_at)
       SELECT 'default', 'u', 0, {at}, {at}, {at}, {at} FROM generate_series({first}, {last}) n""",
    """INSERT INTO change_samples (app_id, scope, changed_at)
       SELECT 'default', 's' || n, {at} FROM generate_series({first}, {last}) n""",
    """INSERT INTO device_cursors (app_id, user_id, device_id, scope, epoch, sequence, seen_at)
       SELECT 'default', 'u', 'd', 's' || n, 'e', 1, {at} FROM generate_series({first}, {last}) n""",
    """INSERT INTO touches (app_id, user_id, xid, touched_at)
       SELECT 'default', 'u', n::text::xid8, {at} FROM generate_series({first}, {last}) n""",
)
_TABLES = (
    "request_records",
    "notifications",
    "deliveries",
    "dedupe_windows",
    "token_moves",
    "token_removals",
    "sessions",
    "change_samples",
    "device_cursors",
)
_STATEMENTS: dict[str, tuple[str, tuple[object, ...]]] = {
    "request_records": (idempotency.FORGET_OLD, (1_000, BEGINNING)),
    "notifications": (lifecycle.FORGET_DELIVERIES, (30.0, 1_000, BEGINNING, 10_000)),
    "dedupe_windows": (dedupe_windows.FORGET, (1_000, BEGINNING)),
    "token_moves": (token_move_rows.FORGET_MOVES, (1_000, BEGINNING)),
    "token_removals": (dead_token_removal.FORGET_REMOVALS, (1_000, BEGINNING)),
    "sessions": (auth.DELETE_EXPIRED, (1_000, BEGINNING)),
    "change_samples": (change_samples.FORGET_SAMPLES, (1_000, BEGINNING)),
    "device_cursors": (device_cursors.FORGET_LEFT, ("", "", "", "", 1_000)),
    "touches": (invalidations.DELETE_TOUCHES, (120.0, 1_000, "0")),
}


async def plant(urls: DatabaseUrls, old: int = OLD, fresh: int = FRESH) -> None:
    for first, last, at in ((1, old, "now() - interval '1 year'"), (old + 1, old + fresh, "now()")):
        await run_sql(urls.admin_url, *(line.format(at=at, first=first, last=last) for line in _PLANT))


def everything(database: Database, forgot: Any = lambda name, count: None) -> Retention:
    kinds = [*maintenance.old_rows(30.0), *OLD_ROWS, *tombstone_pruning.OLD_ROWS]
    return Retention(database, kinds, SystemClock(), forgot)


async def test_retention_deletes_all_old_rows_in_one_sweep(database: Database, database_urls: DatabaseUrls) -> None:
    await plant(database_urls)
    gone = await everything(database).sweep()
    assert gone == {
        "request_records": OLD,
        "notifications": 2 * OLD,
        "dedupe_windows": OLD,
        "registration_tokens": 0,
        "token_moves": OLD,
        "token_removals": OLD,
        "sessions": OLD,
        "change_samples": OLD,
        "device_cursors": OLD,
    }
    for table in _TABLES:
        assert await value_of(database, f"SELECT count(*) FROM {table}") == FRESH, table


async def test_retention_alternates_between_kinds(database: Database, database_urls: DatabaseUrls) -> None:
    await plant(database_urls)
    order: list[str] = []
    await everything(database, lambda name, count: order.append(name)).sweep()
    kinds = list(dict.fromkeys(order))
    assert len(kinds) == 8
    assert order[: len(kinds)] == kinds, "each has its first batch before any has its second"


async def test_retention_of_a_notification_with_many_deliveries_takes_several_batches(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await plant(database_urls, old=1, fresh=0)
    await run_sql(
        database_urls.admin_url,
        """INSERT INTO deliveries (app_id, notification_id, user_id, device_id, state, priority, due_at, expires_at,
                                   created_at, updated_at)
           SELECT app_id, notification_id, 'u' || n, 'd', 'SENT', 0, due_at, due_at, due_at, due_at
           FROM notifications, generate_series(1, 250) n""",
    )
    batches = []
    more, place = True, None
    while more:
        async with database.transaction() as conn:
            gone, more, place = await lifecycle.forget_notifications(conn, 30.0, 10, place)
        batches.append(gone)
    assert batches == [100, 100, 52]
    assert await value_of(database, "SELECT count(*) FROM notifications") == 0


async def test_retention_stops_between_two_batches(database: Database, database_urls: DatabaseUrls) -> None:
    await plant(database_urls)
    batches: list[int] = []

    def forgot(name: str, count: int) -> None:
        batches.append(count)
        working.stop()

    working = everything(database, forgot)
    await working.sweep()
    assert batches == [1_000]


async def test_retention_runs_in_one_process_at_a_time(database: Database, database_urls: DatabaseUrls) -> None:
    await plant(database_urls, old=10)
    async with database.transaction() as conn:
        await conn.execute("SELECT pg_advisory_xact_lock($1, $2)", *retention._LOCK)
        assert sum((await everything(database).sweep()).values()) == 0
    assert sum((await everything(database).sweep()).values()) == 90


async def test_retention_continues_with_other_kinds_after_a_failure(database: Database) -> None:
    asked: list[int] = []

    async def fails(conn: Connection, limit: int, place: None) -> DeletedBatch:
        asked.append(limit)
        raise DependencyDown("the database took too long")

    async def works(conn: Connection, limit: int, place: None) -> DeletedBatch:
        return DeletedBatch(7, more=False, place=None)

    working = Retention(
        database, [RetentionRule("slow", fails, every_s=0), RetentionRule("quick", works, every_s=0)], SystemClock()
    )
    assert await working.sweep() == {"slow": 0, "quick": 7}
    await working.sweep()
    assert asked == [1_000, 250]


async def test_retention_spares_member_cursors_and_waiting_rows(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await plant(database_urls, old=2, fresh=0)
    await run_sql(
        database_urls.admin_url,
        "SET session_replication_role = replica",
        """INSERT INTO scope_members (app_id, user_id, scope, role, added_at)
           VALUES ('default', 'u', 's1', 'READER', now())""",
        "UPDATE deliveries SET state = 'PENDING' WHERE notification_id::text LIKE '%1'",
        "UPDATE dedupe_windows SET trailed_by = opened_by WHERE dedupe_key = 'k1'",
    )
    await everything(database).sweep()
    assert await rows_of(database, "SELECT scope FROM device_cursors") == [("s1",)]
    assert await rows_of(database, "SELECT dedupe_key FROM dedupe_windows") == [("k1",)]
    assert await value_of(database, "SELECT count(*) FROM notifications") == 1
    assert await rows_of(database, "SELECT state FROM deliveries") == [("PENDING",)]


async def test_retention_of_invalidations_resumes_from_the_last(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await plant(database_urls)
    since, counts = "0", []
    for _ in range(4):
        async with database.connection() as conn:
            gone, since = await invalidations.delete_touches(conn, 120.0, 1_000, since)
        counts.append(gone)
    assert (counts, since) == ([1_000, 1_000, 1_000, 500], str(OLD))
    assert await value_of(database, "SELECT count(*) FROM touches") == FRESH


async def test_retention_uses_indexes(database: Database, database_urls: DatabaseUrls) -> None:
    await plant(database_urls, old=10, fresh=10_000)
    await run_sql(database_urls.admin_url, f"ANALYZE {', '.join(_STATEMENTS)}")
    for table, (statement, arguments) in _STATEMENTS.items():
        plan = [line for (line,) in await rows_of(database, f"EXPLAIN {statement}", *arguments)]
        assert not [line for line in plan if f"Seq Scan on {table}" in line], plan
