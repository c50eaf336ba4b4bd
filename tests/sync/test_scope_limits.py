"""Users of very many scopes: 2,000 are followed, nobody joins more, and who had more before is told so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration

from syncbeat import SmartSync, SyncbeatClient
from syncbeat.v1 import core_pb2, directory_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.directory.model import MAX_SCOPES
from tests.client.test_smart_sync_real_server import Store
from tests.support.client_servers import client_of, user_token
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.phones import DeviceClock
from tests.support.rpc_server import Server

pytestmark = pytest.mark.rpc

GRPC_DEFAULT = 4 << 20
OLDEST = "scope-00001"


def longest(number: int) -> str:
    """The name of a scope, as long as it may be."""
    return f"scope-{number:05}".ljust(128, "x")


async def plant(urls: DatabaseUrls, user_id: str, count: int, *, width: int = 11) -> None:
    """Make a user a member of scopes with a change each, whatever the limit; the first of them changed first."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        names = f"rpad('scope-' || lpad(n::text, 5, '0'), {width}, 'x')"
        await conn.execute(
            f"""WITH made AS (
                    INSERT INTO scopes (app_id, scope, head, created_at, changed_at)
                    SELECT 'default', {names}, 1, now() - interval '2 days',
                           now() - interval '1 day' + n * interval '1 s'
                    FROM generate_series(1, {count}) n ON CONFLICT DO NOTHING)
                INSERT INTO scope_members (app_id, user_id, scope, role, added_at)
                SELECT 'default', '{user_id}', {names}, 'READER', now() - interval '1 day'
                FROM generate_series(1, {count}) n"""
        )
        await conn.execute(
            """INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)
               SELECT app_id, scope, 'k', '1', 1, changed_at FROM scopes WHERE head = 1 ON CONFLICT DO NOTHING"""
        )
    finally:
        await conn.close()


def joining(
    scope: str, *user_ids: str, role: directory_service_pb2.Role.ValueType = directory_service_pb2.ROLE_READER
) -> directory_service_pb2.AddScopeMembersRequest:
    members = [directory_service_pb2.ScopeMember(user_id=user_id, role=role) for user_id in user_ids]
    return directory_service_pb2.AddScopeMembersRequest(scope=scope, members=members)


async def scopes_of(server: Server, user_id: str) -> int:
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        return int(await conn.fetchval("SELECT count(*) FROM scope_members WHERE user_id = $1", user_id))
    finally:
        await conn.close()


async def test_scope_limit_refuses_more_members_and_names_the_user(server: Server) -> None:
    await plant(server.urls, "ann", MAX_SCOPES - 1)
    await server.backend(joining("last", "ann", "bob"))
    refusal = await server.backend.refusal(joining("too many", "ann", "carl"))
    assert refusal.told == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    assert refusal.metadata["user_id"] == "ann"
    assert [await scopes_of(server, user) for user in ("ann", "bob", "carl")] == [MAX_SCOPES, 1, 0]
    await server.backend(joining("last", "ann", role=directory_service_pb2.ROLE_WRITER))
    await server.backend(directory_service_pb2.RemoveScopeMembersRequest(scope="last", user_ids=["ann"]))
    await server.backend(joining("too many", "ann", "carl"))
    assert await scopes_of(server, "ann") == MAX_SCOPES


async def test_scope_limit_exceeded_already_keeps_scopes_and_joins_none(server: Server) -> None:
    await plant(server.urls, "ann", MAX_SCOPES + 5)
    await server.backend(joining(OLDEST, "ann", role=directory_service_pb2.ROLE_WRITER))
    refusal = await server.backend.refusal(joining("too many", "ann"))
    assert (refusal.told, refusal.metadata["user_id"]) == (("RESOURCE_EXHAUSTED", "RATE_LIMITED"), "ann")
    assert await scopes_of(server, "ann") == MAX_SCOPES + 5


async def test_scope_limit_holds_under_concurrency(server: Server) -> None:
    await plant(server.urls, "ann", MAX_SCOPES - 3)
    calls = [server.backend(joining(f"new {number}", "ann")) for number in range(12)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(answer, Exception) for answer in answers) == 3
    assert await scopes_of(server, "ann") == MAX_SCOPES


async def test_hint_names_every_scope_up_to_the_limit(server: Server) -> None:
    await plant(server.urls, "ann", MAX_SCOPES, width=128)
    await server.register("ann", "phone")
    ann = server.user("ann")
    cursors = [core_pb2.ScopeCursor(scope=longest(n), sequence=1) for n in range(1, MAX_SCOPES + 1)]
    hint = (await ann(pb.GetHintRequest(device_id="phone", cursors=cursors))).hint
    assert (hint.changed, hint.more_scopes) == (False, False)
    assert [head.scope for head in hint.heads] == [longest(n) for n in range(1, MAX_SCOPES + 1)]
    assert hint.ByteSize() < GRPC_DEFAULT
    shown = [core_pb2.ScopeCursor(scope=head.scope, epoch=head.epoch, sequence=0) for head in hint.heads]
    shown[1:] = list(hint.heads)[1:]
    assert (await ann(pb.GetHintRequest(device_id="phone", cursors=shown))).hint.changed
    refusal = await ann.refusal(pb.GetHintRequest(device_id="phone", cursors=[*cursors, cursors[0]]))
    assert (refusal.told, refusal.fields) == (("INVALID_ARGUMENT", "INVALID_FIELD"), ("cursors",))


async def test_hint_beyond_the_scope_limit_flags_more(server: Server) -> None:
    await plant(server.urls, "ann", MAX_SCOPES + 1)
    await server.register("ann", "phone")
    ann = server.user("ann")
    hint = (await ann(pb.GetHintRequest(device_id="phone"))).hint
    assert (len(hint.heads), hint.more_scopes, hint.prefer_stream) == (MAX_SCOPES, True, False)
    assert OLDEST not in {head.scope for head in hint.heads}
    known = core_pb2.ScopeCursor(scope=OLDEST, sequence=1)
    hint = (await ann(pb.GetHintRequest(device_id="phone", cursors=[known]))).hint
    assert (len(hint.heads), hint.more_scopes, hint.changed) == (MAX_SCOPES + 1, True, False)
    await server.publish(OLDEST)
    hint = (await ann(pb.GetHintRequest(device_id="phone"))).hint
    assert (len(hint.heads), hint.more_scopes) == (MAX_SCOPES, True)
    assert {head.scope: head.sequence for head in hint.heads}[OLDEST] == 2


async def test_stream_follows_every_scope_up_to_the_limit(server: Server) -> None:
    await plant(server.urls, "ann", MAX_SCOPES)
    watch = server.user("ann").watch()
    checkpoint = await watch.opened()
    assert (len(checkpoint.cursors), checkpoint.hint.more_scopes) == (MAX_SCOPES, False)
    await server.publish(OLDEST)
    assert (await watch.next("change")).scope == OLDEST
    watch.call.cancel()


async def test_stream_beyond_the_scope_limit_flags_more(
    server: Server,
) -> None:
    await plant(server.urls, "ann", MAX_SCOPES + 2)
    ann = server.user("ann")
    often = Duration(seconds=5)
    watch = ann.watch(cursors=[core_pb2.ScopeCursor(scope=OLDEST, sequence=1)], heartbeat_interval=often)
    checkpoint = await watch.opened()
    assert (len(checkpoint.cursors), checkpoint.hint.more_scopes) == (MAX_SCOPES + 1, True)
    await server.publish(OLDEST)
    assert (await watch.next("change")).scope == OLDEST
    await server.backend(directory_service_pb2.RemoveScopeMembersRequest(scope=OLDEST, user_ids=["ann"]))
    await watch.until(
        lambda kind, event: kind == "checkpoint" and OLDEST not in {cursor.scope for cursor in event.cursors}
    )
    watch.call.cancel()
    refused = ann.watch(cursors=[core_pb2.ScopeCursor(scope=OLDEST, sequence=1)])
    with pytest.raises(Exception, match="not a member"):
        await refused.opened()


@asynccontextmanager
async def synced(server: Server, store: Store, clock: DeviceClock, *, streams: bool) -> AsyncIterator[SmartSync]:
    client: SyncbeatClient
    async with client_of(server.address, token=user_token("ann")) as client:
        kept = list(store.cursors.values())
        async with SmartSync(
            client, "phone", on_changes=store.apply, cursors=kept, clock=clock, streams=streams
        ) as sync:
            yield sync


@pytest.mark.parametrize("count", [501, MAX_SCOPES, MAX_SCOPES + 1])
async def test_smart_sync_keeps_every_scope_of_many(server: Server, count: int) -> None:
    await plant(server.urls, "ann", count)
    await server.register("ann", "phone")
    store, clock = Store(), DeviceClock()
    # What was fetched in earlier days, the oldest scope included.
    conn = await asyncpg.connect(server.urls.admin_url)
    for scope, epoch in await conn.fetch("SELECT scope, epoch FROM scopes"):
        store.cursors[scope] = core_pb2.ScopeCursor(scope=scope, epoch=epoch, sequence=1)
        store.rows[scope] = {"k": 1}
    await conn.close()
    async with synced(server, store, clock, streams=True) as sync:
        await wait_until(lambda: sync.hint is not None)
        for _ in range(3):
            assert sync.hint is not None
            await clock.travel(sync.hint.poll_interval.ToTimedelta().total_seconds() + 1)
        assert len(sync.cursors) == len(store.rows) == count
        await server.publish(OLDEST, patch="2")

        async def fetched() -> bool:
            await clock.travel(60.0)
            return store.rows[OLDEST] == {"k": 2}

        await wait_until(fetched)
        assert len(sync.cursors) == len(store.rows) == count
        assert sync.hint is not None
        assert sync.hint.more_scopes is (count > MAX_SCOPES)
        await server.backend(directory_service_pb2.RemoveScopeMembersRequest(scope="scope-00400", user_ids=["ann"]))

        async def dropped() -> bool:
            await clock.travel(60.0)
            return "scope-00400" not in store.rows

        await wait_until(dropped)
        assert len(store.rows) == count - 1


async def test_watch_keeps_cursors_of_unnamed_scopes(server: Server) -> None:
    await plant(server.urls, "ann", MAX_SCOPES + 2)
    cursors = [core_pb2.ScopeCursor(scope=f"scope-{n:05}", sequence=1) for n in range(1, MAX_SCOPES + 3)]
    async with client_of(server.address, token=user_token("ann")) as client, client.watch(cursors=cursors) as watch:
        async with asyncio.timeout(30):
            async for event in watch:
                if isinstance(event, pb.Checkpoint):
                    break
        assert {cursor.scope for cursor in watch.cursors} == {cursor.scope for cursor in cursors}
