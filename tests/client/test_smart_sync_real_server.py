"""`SmartSync` against real servers on real stores; only the device's clock is moved by hand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from syncbeat import ClientRule, SmartSync, SyncBatch, SyncbeatClient
from syncbeat.client_options import DEFAULT_RULE
from syncbeat.v1 import core_pb2, directory_service_pb2, sync_service_pb2
from syncbeat_server.clock import SystemClock
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.tombstone_pruning import TombstonePruner
from tests.support.client_servers import client_of, publish, real_server, user_token
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.phones import DeviceClock
from tests.support.ports import free_port

pytestmark = pytest.mark.rpc


class Store:
    """Records what an app keeps: the cursors in the same place as what they stand for."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, object]] = {}
        self.cursors: dict[str, core_pb2.ScopeCursor] = {}
        self.applied: list[int] = []

    async def apply(self, batch: SyncBatch) -> None:
        if batch.drop:
            self.rows.pop(batch.scope, None)
        for change in batch.changes:
            self.rows.setdefault(batch.scope, {})[change.key] = json.loads(change.value_json)
            self.applied.append(change.sequence)
        self.cursors.pop(batch.scope, None)
        if batch.cursor is not None:
            self.cursors[batch.scope] = batch.cursor


@asynccontextmanager
async def member(
    address: str, *scopes: str, rule: ClientRule = DEFAULT_RULE
) -> AsyncIterator[tuple[SyncbeatClient, SyncbeatClient]]:
    """The backend, and a user's client with a registered device and these scopes."""
    async with client_of(address) as backend, client_of(address, token=user_token("alice"), rule=rule) as client:
        who = [directory_service_pb2.ScopeMember(user_id="alice", role=directory_service_pb2.ROLE_READER)]
        for scope in scopes:
            await backend.directory.AddScopeMembers(
                directory_service_pb2.AddScopeMembersRequest(scope=scope, members=who)
            )
        await client.directory.RegisterDevice(
            directory_service_pb2.RegisterDeviceRequest(
                device_id="phone", platform=directory_service_pb2.PLATFORM_ANDROID
            )
        )
        yield backend, client


async def test_smart_sync_keeps_in_sync_and_resumes(database_urls: DatabaseUrls, redis_url: str) -> None:
    store, clock = Store(), DeviceClock()
    async with real_server(database_urls, redis_url) as address, member(address, "room", "hall") as (backend, client):
        await publish(backend, "room", *[f"k{number}" for number in range(20)])
        async with SmartSync(client, "phone", on_changes=store.apply, clock=clock, streams=False) as sync:
            await clock.quiet()
            assert len(store.rows["room"]) == 20
            await publish(backend, "room", "k20")
            await publish(backend, "hall", "first")
            assert sync.hint is not None
            await clock.travel(sync.hint.poll_interval.ToTimedelta().total_seconds() + 1)
            assert (len(store.rows["room"]), list(store.rows["hall"])) == (21, ["first"])
            await publish(backend, "hall", "second")
            head = store.cursors["hall"]
            payload = {"syncbeat": "sync", "scope": "hall", "epoch": head.epoch, "sequence": str(head.sequence + 1)}
            assert sync.woken(payload)
            await clock.quiet()
            assert list(store.rows["hall"]) == ["first", "second"]
        before = list(store.applied)
        await publish(backend, "room", "k21")
        kept = store.cursors.values()
        async with SmartSync(client, "phone", on_changes=store.apply, cursors=kept, clock=clock, streams=False):
            await clock.quiet()
        assert store.applied == [*before, 22]


async def test_smart_sync_drops_a_left_scope(database_urls: DatabaseUrls, redis_url: str) -> None:
    store, clock = Store(), DeviceClock()
    async with real_server(database_urls, redis_url) as address, member(address, "room", "hall") as (backend, client):
        await publish(backend, "room", "k")
        await publish(backend, "hall", "k")
        async with SmartSync(client, "phone", on_changes=store.apply, clock=clock, streams=False) as sync:
            await clock.quiet()
            await backend.directory.RemoveScopeMembers(
                directory_service_pb2.RemoveScopeMembersRequest(scope="room", user_ids=["alice"])
            )
            assert sync.hint is not None
            await clock.travel(sync.hint.poll_interval.ToTimedelta().total_seconds() + 1)
            assert list(store.rows) == list(store.cursors) == ["hall"]


OFTEN = [f"k{number}" for number in range(40)]
"""So many changes that hints prefer a stream."""


async def test_smart_sync_streams_in_the_foreground(database_urls: DatabaseUrls, redis_url: str) -> None:
    store = Store()
    async with real_server(database_urls, redis_url) as address, member(address, "room") as (backend, client):
        await publish(backend, "room", *OFTEN)
        async with SmartSync(client, "phone", on_changes=store.apply, clock=DeviceClock()) as sync:
            await wait_until(lambda: sync.is_streaming)
            await publish(backend, "room", "live")
            await wait_until(lambda: "live" in store.rows["room"])
            sync.background()
            await wait_until(lambda: not sync.is_streaming)
            await publish(backend, "room", "hidden")
            sync.foreground()
            await wait_until(lambda: "hidden" in store.rows["room"] and sync.is_streaming)
    assert store.applied == list(range(1, 43))


async def test_smart_sync_survives_a_server_restart(database_urls: DatabaseUrls, redis_url: str) -> None:
    store, clock, port = Store(), DeviceClock(), free_port()

    async def streams() -> bool:
        sync.foreground()
        await clock.advance(11)
        return sync.is_streaming

    async with (
        real_server(database_urls, redis_url) as other,
        member(other, "room") as (backend, _),
        client_of(f"127.0.0.1:{port}", token=user_token("alice")) as client,
        SmartSync(client, "phone", on_changes=store.apply, clock=clock) as sync,
    ):
        await publish(backend, "room", *OFTEN)
        async with real_server(database_urls, redis_url, port):
            # The device began without a server.
            await wait_until(streams, timeout_s=20)
        await publish(backend, "room", "between")
        async with real_server(database_urls, redis_url, port):
            await wait_until(lambda: "between" in store.rows["room"], timeout_s=20)
            await sync.close()
    assert store.applied == list(range(1, 42))


async def test_smart_sync_drops_deleted_keys_after_tombstone_pruning(
    database_urls: DatabaseUrls, redis_url: str, database: Database
) -> None:
    two = ClientRule(page_size=2)
    store, clock = Store(), DeviceClock()
    async with real_server(database_urls, redis_url) as address, member(address, "room", rule=two) as (backend, client):
        await publish(backend, "room", *"abcdef")
        async with SmartSync(client, "phone", on_changes=store.apply, clock=clock, streams=False):
            await clock.quiet()
        deletion = core_pb2.NewChange(scope="room", key="b", deleted=True)
        await backend.sync.PublishChanges(sync_service_pb2.PublishChangesRequest(changes=[deletion]))
        await publish(backend, "room", "g")
        async with database.connection() as conn:
            await conn.execute("UPDATE changes SET changed_at = changed_at - interval '32 days'")
        assert await TombstonePruner(database, 30.0, SystemClock()).prune() == 1
        before = list(store.applied)
        kept = store.cursors.values()
        async with SmartSync(client, "phone", on_changes=store.apply, cursors=kept, clock=clock, streams=False):
            await clock.quiet()
    assert list(store.rows["room"]) == list("acdefg")
    assert store.applied == [*before, 1, 3, 4, 5, 6, 8]
