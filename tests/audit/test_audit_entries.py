"""Audit entries: they commit with what they tell of, nobody changes them, and the owner's function ends them."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from syncbeat_server.audit.model import DEPLOYMENT, AuditAction, AuditEntry, AuditFilter, EntryPlace, user_subject
from syncbeat_server.audit.origin import Origin, acting_for, origin
from syncbeat_server.audit.record import record
from syncbeat_server.audit.retention import old_rows
from syncbeat_server.audit.service import AuditService, record_configuration
from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.events.user_lifecycle import disable_user
from syncbeat_server.storage.postgres.database import Database, RowOwner
from syncbeat_server.storage.postgres.driver_errors import StatementRejected
from syncbeat_server.storage.retention import Retention
from tests.support.build import APP, make_user_lifecycle
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import FakeClock
from tests.support.seed import rows_of, value_of

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

ALL = AuditFilter()
NO_PRIVILEGE = "42501"


async def entries(database: Database, wanted: AuditFilter = ALL, app_id: str | None = None) -> list[AuditEntry]:
    return await AuditService(database, frozenset).all_entries(app_id, wanted, None, 1_000)


async def write(database: Database, *subjects: str, app_id: str = APP, actor: str = "service:one") -> None:
    """Write an entry about each, in transactions of their own."""
    with acting_for(actor, {}):
        for subject in subjects:
            async with database.transaction() as conn:
                await record(conn, app_id, AuditAction.USER_DISABLED, subject)


async def test_audit_entry_has_the_time_actor_address_and_call(database: Database, clock: FakeClock) -> None:
    token = origin.set(Origin("service:backend", lambda: "2001:db8::1", "call-1"))
    try:
        await make_user_lifecycle(database).disable(APP, "bob")
    finally:
        origin.reset(token)
    (entry,) = await entries(database)
    assert (entry.action, entry.subject) == (AuditAction.USER_DISABLED, "user:bob")
    assert (entry.actor, entry.address, entry.request_id) == ("service:backend", "2001:db8::1", "call-1")
    assert entry.occurred_at == clock.now()


async def test_audit_entry_of_a_rolled_back_action_is_not_kept(database: Database) -> None:
    async def disable_and_fail() -> None:
        async with database.transaction() as conn:
            await disable_user(conn, APP, "bob")
            raise SyncbeatError("the commit does not come")

    with pytest.raises(SyncbeatError):
        await disable_and_fail()
    assert await entries(database) == []
    assert await value_of(database, "SELECT count(*) FROM users") == 0


async def test_action_whose_audit_entry_fails_is_not_kept(database: Database) -> None:
    token = origin.set(Origin("service:" + "x" * 300))
    try:
        with pytest.raises(SyncbeatError):
            await make_user_lifecycle(database).disable(APP, "bob")
    finally:
        origin.reset(token)
    assert await value_of(database, "SELECT count(*) FROM users") == 0


INSERT = "INSERT INTO audit_entries (app_id, action, actor, address, subject, request_id, details"
VALUES = "VALUES ('default', 'X', 'x', '', 's', '', '{}'"
FORBIDDEN = {
    "update": "UPDATE audit_entries SET actor = 'service:another'",
    "delete": "DELETE FROM audit_entries",
    "truncate": "TRUNCATE audit_entries",
    "lock": "SELECT FROM audit_entries FOR UPDATE",
    "choose the time": f"{INSERT}, occurred_at) {VALUES}, '2000-01-01')",
    "choose the id": f"{INSERT}, entry_id) {VALUES}, gen_random_uuid())",
    "alter": "ALTER TABLE audit_entries NO FORCE ROW LEVEL SECURITY",
    "replace the function": """CREATE OR REPLACE FUNCTION syncbeat_delete_old_audit(interval, integer, timestamptz)
        RETURNS TABLE (gone bigint, found bigint, last timestamptz) LANGUAGE sql
        AS 'SELECT 0::bigint, 0::bigint, now()'""",
}


@pytest.mark.parametrize("statement", FORBIDDEN.values(), ids=FORBIDDEN)
async def test_audit_log_is_append_only_for_the_services_login(database_urls: DatabaseUrls, statement: str) -> None:
    await run_sql(database_urls.app_url, f"{INSERT}) {VALUES})")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await run_sql(database_urls.app_url, statement)


async def test_audit_log_is_out_of_reach_of_a_users_transaction(database: Database) -> None:
    await write(database, "user:bob")
    for statement in ("SELECT * FROM audit_entries", "SELECT * FROM syncbeat_delete_old_audit('1 day', 1, now())"):
        with pytest.raises(StatementRejected) as caught:
            async with database.transaction(RowOwner(APP, "bob")) as conn:
                await conn.fetch(statement)
        assert caught.value.sqlstate == NO_PRIVILEGE


async def test_audit_retention_deletes_older_entries_in_batches(
    database: Database, database_urls: DatabaseUrls
) -> None:
    plant = """INSERT INTO audit_entries (app_id, action, actor, address, subject, request_id, details, occurred_at)
               SELECT 'default', 'X', 'x', '', '{age} days', '', '{{}}', syncbeat_now() - interval '{age} days'
               FROM generate_series(1, {count})"""
    planted = [plant.format(age=age, count=count) for age, count in ((366, 2_500), (364, 3), (29, 2))]
    await run_sql(database_urls.admin_url, *planted)
    retention = Retention(database, old_rows(365), SystemClock())
    assert await retention.sweep() == {"audit_entries": 2_500}
    assert await Retention(database, old_rows(1), SystemClock()).sweep() == {"audit_entries": 3}
    left = await rows_of(database, "SELECT DISTINCT subject FROM audit_entries")
    assert left == [("29 days",)], "30 days are kept whatever the login asks for"


async def test_audit_retention_keeps_what_the_configuration_is_compared_with(
    database: Database, database_urls: DatabaseUrls
) -> None:
    async def told() -> list[tuple[str, str]]:
        return sorted((entry.app_id, entry.action) for entry in await entries(database))

    async def age_and_sweep() -> None:
        await run_sql(
            database_urls.admin_url, "UPDATE audit_entries SET occurred_at = occurred_at - interval '400 days'"
        )
        await Retention(database, old_rows(365), SystemClock()).sweep()

    await record_configuration(database, {APP: "1", "shop": "1", "blog": "1"})
    await record_configuration(database, {APP: "1", "shop": "2", "blog": "1"})
    await write(database, "user:bob")
    await age_and_sweep()
    kept = [("blog", "APP_ADDED"), (APP, "APP_ADDED"), ("shop", "APP_CHANGED")]
    assert await told() == kept, "the newest of each app, and nothing else"
    await record_configuration(database, {APP: "1", "shop": "2", "blog": "1"})
    assert await told() == kept, "a restart changes nothing"
    await record_configuration(database, {APP: "2", "shop": "2"})
    await age_and_sweep()
    assert await told() == [("blog", "APP_REMOVED"), (APP, "APP_CHANGED"), ("shop", "APP_CHANGED")]


async def test_audit_list_pages_newest_first_without_gaps(database: Database, clock: FakeClock) -> None:
    subjects = [user_subject(f"u{number}") for number in range(25)]
    for number, subject in enumerate(subjects):
        if number % 4 == 0:
            await clock.advance(1.0)  # of equal times the id decides
        await write(database, subject)
    service = AuditService(database, lambda: [APP])
    listed: list[AuditEntry] = []
    after: EntryPlace | None = None
    while page := await service.entries_of_app(APP, [APP], ALL, after, 7):
        listed += page
        after = EntryPlace(page[-1].occurred_at, page[-1].entry_id)
    assert sorted(entry.subject for entry in listed) == sorted(subjects)
    assert listed == sorted(listed, key=lambda entry: (entry.occurred_at, entry.entry_id), reverse=True)


async def test_audit_list_filters(database: Database, clock: FakeClock) -> None:
    begin = clock.now()
    await write(database, "user:ann", "user:bob")
    await clock.advance(60.0)
    await write(database, "user:ann", actor="admin:ops")
    await write(database, "user:ann", app_id="shop")
    later = clock.now()

    async def found(**wanted: object) -> int:
        return len(await entries(database, AuditFilter(**wanted), APP))  # type: ignore[arg-type]  # fields by name

    assert await found() == 3
    assert await found(subject="user:ann") == 2
    assert await found(actor="admin:ops") == 1
    assert await found(actor="admin:ops", subject="user:bob") == 0
    assert await found(action=AuditAction.USER_DISABLED) == 3
    assert await found(action=AuditAction.USER_DELETED) == 0
    assert await found(since=later) == 1
    assert await found(until=later) == 2
    assert await found(since=begin, until=begin) == 0


async def test_audit_list_of_an_app_shows_the_deployment_to_who_acts_for_all(database: Database) -> None:
    for app_id in (APP, "shop", DEPLOYMENT):
        await write(database, f"user:of {app_id}", app_id=app_id)
    service = AuditService(database, lambda: [APP, "shop"])

    async def apps(app_id: str, *allowed: str) -> set[str]:
        return {entry.app_id for entry in await service.entries_of_app(app_id, allowed, ALL, None, 10)}

    assert await apps("shop", "shop") == {"shop"}
    assert await apps("shop", "shop", APP) == {"shop", DEPLOYMENT}
    assert {entry.app_id for entry in await entries(database)} == {APP, "shop", DEPLOYMENT}


async def test_audit_entries_of_an_erased_user_stay(database: Database) -> None:
    lifecycle = make_user_lifecycle(database)
    await lifecycle.enable(APP, "bob")
    await lifecycle.delete(APP, "bob")
    told = [entry.action for entry in await entries(database, AuditFilter(subject="user:bob"))]
    assert sorted(told) == [AuditAction.USER_DELETED, AuditAction.USER_ENABLED]


async def test_audit_of_configuration_records_each_change_once(database: Database) -> None:
    async def told() -> list[tuple[str, str]]:
        found = [(entry.app_id, entry.action) for entry in await entries(database)]
        return sorted(found)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):  # processes that start together
            group.create_task(record_configuration(database, {APP: "1", "shop": "1"}))
    assert await told() == [(APP, "APP_ADDED"), ("shop", "APP_ADDED")]
    for _ in range(2):
        await record_configuration(database, {APP: "2", "shop": "1"}, {APP: "jwt_issuer"})
    assert (await told())[1] == (APP, "APP_CHANGED")
    for _ in range(2):
        await record_configuration(database, {APP: "2"})
    await record_configuration(database, {APP: "2", "shop": "1"})
    of_shop = [action for app_id, action in await told() if app_id == "shop"]
    assert of_shop == ["APP_ADDED", "APP_ADDED", "APP_REMOVED"]
    (changed,) = await entries(database, AuditFilter(action="APP_CHANGED"))
    assert changed.details == '{"settings":"2","changed":"jwt_issuer"}'
