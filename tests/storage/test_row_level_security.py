"""Tests row-level security: what a USER transaction sees and changes by calling the stores, as the service's login."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from syncbeat.v1 import sync_service_pb2
from syncbeat_server.audit.store import entries as audit
from syncbeat_server.auth.store import identities, users
from syncbeat_server.auth.store import sessions as auth
from syncbeat_server.directory.store import (
    dead_token_removal,
    device_locks,
    devices,
    members,
    preferences,
    token_ageing,
    token_move_rows,
    user_rows,
)
from syncbeat_server.events.store import event_batches, event_rows, old_events
from syncbeat_server.push.store import (
    alerts,
    app_secrets,
    collapse_keys,
    daily_maximum,
    dedupe_windows,
    fanout,
    lifecycle,
    queue,
    queue_figures,
    user_erasure,
    wake_budgets,
)
from syncbeat_server.push.store import notifications as push
from syncbeat_server.ratelimit.store import quota_usage, user_tiers
from syncbeat_server.status.store import process_rows, server_connections, slo_counts, slo_figures
from syncbeat_server.storage import idempotency
from syncbeat_server.storage.postgres import restore_detection
from syncbeat_server.storage.postgres.database import Connection, Database, RowOwner
from syncbeat_server.storage.postgres.driver_errors import StatementRejected
from syncbeat_server.sync.model import Cursor
from syncbeat_server.sync.store import (
    change_writes,
    changes,
    device_cursors,
    device_views,
    epochs,
    firehose_pages,
    invalidations,
    member_scopes,
    publish_batches,
    reported_activity,
    scopes,
    tombstones,
)
from syncbeat_server.transfer.store import imports
from tests.support.isolation import PHONE, TOKEN, at, people
from tests.support.rpc_server import Server
from tests.support.seed import value_of
from tests.support.store_calls import CHANGED_AT, ONCE, REFUSED, SEEN, SESSION, SIGNAL, Attempt

pytestmark = pytest.mark.rpc


@pytest.fixture
async def peopled(server: Server, database: Database) -> Server:
    """Bob has a bit of everything; alice has a scope of her own, and reads one of bob's."""
    SESSION[0] = await people(server)
    CHANGED_AT[0] = await value_of(database, "SELECT changed_at FROM changes WHERE (scope, key) = ('bobs', 'k')")
    return server


STRANGERS = (RowOwner("default", "mallory"), RowOwner("other", "bob"), RowOwner("default", ""), RowOwner("", ""))


STORES = (
    *(
        devices,
        members,
        preferences,
        token_move_rows,
        changes,
        change_writes,
        device_cursors,
        device_views,
        reported_activity,
        member_scopes,
        scopes,
        epochs,
        invalidations,
        tombstones,
        firehose_pages,
        push,
        queue,
        lifecycle,
        fanout,
        daily_maximum,
        wake_budgets,
    ),
    *(
        alerts,
        app_secrets,
        collapse_keys,
        queue_figures,
        user_erasure,
        dedupe_windows,
        device_locks,
        dead_token_removal,
        token_ageing,
        idempotency,
        publish_batches,
        restore_detection,
        auth,
        users,
        identities,
        user_rows,
        user_tiers,
        quota_usage,
        event_batches,
        event_rows,
        old_events,
        audit,
        process_rows,
        slo_counts,
        slo_figures,
        server_connections,
        imports,
    ),
)


def functions(module: ModuleType) -> set[Callable[..., Any]]:
    """Return what a store offers."""
    found = inspect.getmembers(module, inspect.iscoroutinefunction)
    return {made for name, made in found if made.__module__ == module.__name__ and not name.startswith("_")}


def is_nothing(answer: object) -> bool:
    return not answer or (isinstance(answer, list | tuple) and not any(answer))


async def test_row_level_security_test_covers_every_store_function() -> None:
    offered = set[Callable[..., Any]]().union(*map(functions, STORES))
    assert offered == SEEN.keys() | REFUSED.keys()


@pytest.mark.parametrize("owner", STRANGERS, ids=lambda owner: f"{owner.app_id}-{owner.user_id}")
async def test_row_level_security_hides_everything_from_a_stranger(
    peopled: Server, database: Database, owner: RowOwner
) -> None:
    before = await peopled.rows()
    for function, attempt in SEEN.items():
        async with database.transaction(owner) as conn:
            answer = await attempt(conn)
        assert is_nothing(answer), (function.__qualname__, answer)
    for function, attempt in REFUSED.items():
        with pytest.raises(StatementRejected) as caught:
            async with database.transaction(owner) as conn:
                await attempt(conn)
        assert caught.value.sqlstate == "42501", function.__qualname__
    assert await peopled.rows() == before


SILENT = {
    *(device_cursors.record_shown, device_cursors.record_fetched),
    *(reported_activity.report_activity, devices.report_activity, devices.count_wake_ups, scopes.advance_heads),
    *(dead_token_removal.quarantine, token_move_rows.lock_token),
    *(members.lock_memberships, audit.lock_configuration),
    token_ageing.age_tokens,  # nobody has a month
    *(dead_token_removal.lock_devices, device_locks.lock_in_order, token_move_rows.lock_holders),
    *(devices.lock_registering, devices.lock_erasing),
    change_writes.oversized,  # nor a value of a mebibyte
    change_writes.raise_source_times,
    *(epochs.foreign_apps, epochs.forget_foreign_transactions),  # nor changes of another cluster
    imports.look_up_by_index,
    scopes.record_writer_presence,  # the server has noted it already
}
LAST: list[Callable[..., Any]] = [
    auth.revoke_sessions,
    auth.revoke_session,
    token_move_rows.release_token,
    device_locks.delete_devices,
]  # these take away what the others look at


async def test_row_level_security_allows_the_service(peopled: Server, database: Database) -> None:
    """Otherwise the test above would pass by asking for what is not there."""
    for function in [*(SEEN.keys() - SILENT - {*LAST}), *LAST]:
        async with database.connection() as conn:
            assert not is_nothing(await SEEN[function](conn)), function.__qualname__
    await peopled.register("bob", PHONE.device_id, TOKEN)
    epoch = (await peopled.backend(sync_service_pb2.ListChangesRequest(cursor=at("bobs")))).next_cursor.epoch

    async def seen(conn: Connection) -> None:
        await device_cursors.record_shown(conn, [(PHONE, Cursor("bobs", epoch, 1))])

    for function in (
        reported_activity.report_activity,
        scopes.advance_heads,
        change_writes.raise_source_times,
        device_cursors.record_shown,
        dead_token_removal.quarantine,
    ):
        before = await peopled.rows()
        async with database.connection() as conn:
            await (seen if function is device_cursors.record_shown else SEEN[function])(conn)
        assert await peopled.rows() != before, function.__qualname__


READERS: dict[str, Attempt] = {
    "locks nothing": lambda c: scopes.lock_scopes(c, [("default", "shared")], create=False),
    "moves no head": lambda c: scopes.advance_heads(c, [scopes.MovedScope("default", "shared", 99, SIGNAL, ONCE)]),
}


async def test_row_level_security_refuses_writes_of_a_reader(peopled: Server, database: Database) -> None:
    alice, before = RowOwner("default", "alice"), await peopled.rows()
    for name, attempt in READERS.items():
        async with database.transaction(alice) as conn:
            assert is_nothing(await attempt(conn)), name
    for key in ("k", "new"):
        with pytest.raises(StatementRejected) as caught:
            async with database.transaction(alice) as conn:
                await change_writes.write_changes(conn, [change_writes.Write("default", "shared", key, 99, None, "{}")])
        assert caught.value.sqlstate == "42501"
    async with database.transaction(alice) as conn:
        listed = await members.list_members(conn, "default", "shared", "", 10)
    assert [member.user_id for member in listed] == ["alice"]
    assert await peopled.rows() == before
