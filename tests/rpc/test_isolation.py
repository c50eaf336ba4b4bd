"""What is not a user's own: not seen over any RPC, nor by calling the stores in a USER transaction."""

from __future__ import annotations

import hashlib
import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from google.protobuf.message import Message

from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_server.auth.tokens import KeyRow
from syncbeat_server.directory import store as directory
from syncbeat_server.directory.model import Member, MemberRole, Platform, Registration
from syncbeat_server.push import queue
from syncbeat_server.push import store as push
from syncbeat_server.push.model import (
    ClaimedDelivery,
    Content,
    DeliveryFilter,
    DeliveryState,
    Finished,
    Kind,
    Lane,
    NewNotification,
    Reason,
    Target,
)
from syncbeat_server.storage import idempotency
from syncbeat_server.storage.idempotency import RequestKey
from syncbeat_server.storage.postgres import Connection, Database, RowOwner, StatementRejected
from syncbeat_server.sync import store as sync
from syncbeat_server.sync.model import Activity, Cursor, DeviceKey, NewChange
from tests.conftest import DatabaseUrls
from tests.fakes import wait_until
from tests.rpc.conftest import Refusal, Server, running_server

DENIED = ("PERMISSION_DENIED", "ACCESS_DENIED")
BOB = RowOwner("default", "bob")
PHONE = DeviceKey("default", "bob", "bobs phone")
TOKEN = "bobs-registration-token"
FULL = {
    *("devices", "scopes", "scope_members", "changes", "device_cursors", "request_records"),
    *("notifications", "deliveries", "dedupe_windows", "token_moves"),
}


def change(scope: str, key: str = "k", **fields: Any) -> core_pb2.NewChange:
    return core_pb2.NewChange(**{"scope": scope, "key": key, "merge_patch_json": '{"by": "somebody"}', **fields})


def publish(*changes: core_pb2.NewChange, **fields: Any) -> Message:
    return sync_service_pb2.PublishChangesRequest(changes=changes, **fields)


def at(scope: str, sequence: int | None = None) -> core_pb2.ScopeCursor:
    return core_pb2.ScopeCursor(scope=scope, sequence=sequence)


@pytest.fixture
async def peopled(server: Server) -> Server:
    """Bob has a bit of everything; alice has a scope of her own, and reads one of bob's."""
    await server.register("mallory", "bobs phone", TOKEN)
    await server.register("bob", PHONE.device_id, TOKEN)
    await server.register("alice", "her phone", "alices-token")
    await server.add("bobs", "bob")
    await server.add("shared", "bob", readers=("alice",))
    await server.add("hers", "alice")
    trigger = core_pb2.SyncTrigger(type="t")
    bob = server.user("bob")
    for scope in ("bobs", "shared"):
        await bob(publish(change(scope), change(scope, "k2"), trigger=trigger, request_id=f"r {scope}"))
    heads = (await bob(sync_service_pb2.GetHintRequest(device_id=PHONE.device_id))).hint.heads
    watch = bob.watch(device_id=PHONE.device_id, cursors=heads)
    await watch.opened()
    watch.call.cancel()
    # A stream that opens behind what was recorded proves that it was: the answer to GetHint does not wait for it.
    await seen_by_bob(server)
    assert {table for table, rows in (await server.rows()).items() if rows} >= FULL
    return server


async def seen_by_bob(server: Server) -> None:
    async def recorded() -> bool:
        return len((await server.rows())["device_cursors"]) >= 2

    await wait_until(recorded)


def of_a_device(device_id: str) -> list[Message]:
    activity = sync_service_pb2.Activity(battery_low=True)
    return [
        sync_service_pb2.GetHintRequest(device_id=device_id),
        sync_service_pb2.ReportActivityRequest(device_id=device_id, activity=activity),
        directory_service_pb2.GetDeviceRequest(device_id=device_id),
        directory_service_pb2.UnregisterDeviceRequest(device_id=device_id),
    ]


def of_a_scope(scope: str) -> list[Message]:
    return [
        sync_service_pb2.GetHintRequest(device_id="her phone", cursors=[at("hers"), at(scope)]),
        sync_service_pb2.WatchHintsRequest(device_id="her phone", cursors=[at("hers"), at(scope, 0)]),
        sync_service_pb2.WatchHintsRequest(cursors=[at(scope)]),
        sync_service_pb2.ListChangesRequest(cursor=at(scope)),
        sync_service_pb2.ListChangesRequest(cursor=at(scope, 2), device_id="her phone"),
        publish(change(scope)),
        publish(change(scope, deleted=True, merge_patch_json="")),
        publish(change("hers"), change(scope), trigger=core_pb2.SyncTrigger()),
        publish(change(scope, expected_sequence=1), request_id="r bobs"),
    ]


def untold(refusal: Refusal) -> tuple[object, ...]:
    """A refusal without what the caller said itself."""
    return refusal.told, refusal.message, refusal.metadata.keys()


async def test_what_is_not_there_and_what_is_not_theirs_look_the_same(peopled: Server) -> None:
    alice, before = peopled.user("alice"), await peopled.rows()
    for others, absent in (
        *zip(of_a_device(PHONE.device_id), of_a_device("no such device"), strict=True),
        *zip(of_a_scope("bobs"), of_a_scope("no such scope"), strict=True),
    ):
        refused = await alice.refusal(others)
        assert refused.told == DENIED, others
        assert untold(refused) == untold(await alice.refusal(absent)), others
    assert await peopled.rows() == before


async def test_a_service_that_acts_for_a_user_sees_what_that_user_sees(peopled: Server) -> None:
    before = await peopled.rows()
    asked = [cast(Any, request) for request in of_a_scope("bobs")]
    for request in asked:
        request.user_id = "alice"
        assert (await peopled.backend.refusal(request)).told == DENIED, request
    assert await peopled.rows() == before


async def test_a_reader_reads_and_does_not_write(peopled: Server) -> None:
    alice, before = peopled.user("alice"), await peopled.rows()
    page = await alice(sync_service_pb2.ListChangesRequest(cursor=at("shared")))
    assert [row.key for row in page.changes] == ["k", "k2"]
    for request in (
        publish(change("shared")),
        publish(change("shared", deleted=True, merge_patch_json="")),
        publish(change("hers"), change("shared")),
        publish(change("hers"), trigger=core_pb2.SyncTrigger(notification=core_pb2.Notification(title="t"))),
        sync_service_pb2.WatchHintsRequest(all_scopes=True),
    ):
        assert (await alice.refusal(request)).told == DENIED
    assert await peopled.rows() == before


async def test_lists_hold_what_is_their_own(peopled: Server) -> None:
    alice, nobody = peopled.user("alice"), peopled.user("nobody")
    devices, scopes = directory_service_pb2.ListDevicesRequest(), directory_service_pb2.ListScopesRequest()
    assert [device.device_id for device in (await alice(devices)).devices] == ["her phone"]
    assert [part.scope for part in (await alice(scopes)).scopes] == ["hers", "shared"]
    assert not (await nobody(devices)).devices
    assert not (await nobody(scopes)).scopes
    hint = (await alice(sync_service_pb2.GetHintRequest(device_id="her phone"))).hint
    assert [head.scope for head in hint.heads] == ["hers", "shared"]


async def test_a_device_id_is_a_users_own(peopled: Server) -> None:
    register = directory_service_pb2.RegisterDeviceRequest(
        device_id=PHONE.device_id, platform=directory_service_pb2.PLATFORM_WEB
    )
    before = [row for row in (await peopled.rows())["devices"] if "bob," in row]
    await peopled.user("alice")(register)
    await peopled.user("alice")(directory_service_pb2.UnregisterDeviceRequest(device_id=PHONE.device_id))
    assert [row for row in (await peopled.rows())["devices"] if "bob," in row] == before


async def test_a_stream_brings_nothing_of_others(peopled: Server) -> None:
    alice = peopled.user("alice").watch(device_id="her phone")
    await alice.opened()
    await peopled.publish("bobs", "secret")
    await peopled.publish("hers", "news")
    events = await alice.until(lambda kind, _: kind == "checkpoint")
    assert [event.key for kind, event in events if kind == "change"] == ["news"]
    assert {cursor.scope for cursor in events[-1][1].cursors} == {"hers", "shared"}


# ------------------------------------------------------------------------------------ the stores, in a USER transaction

REGISTRATION = Registration("default", "bob", "bobs phone", Platform.IOS, "t", "", "")
THEFT = Registration("default", "mallory", "mine", Platform.IOS, TOKEN, "", "")
DIGEST = hashlib.sha256(TOKEN.encode()).digest()
EVER = datetime(2000, 1, 1, tzinfo=UTC)
IDS = [str(uuid.uuid4()) for _ in range(3)]
CLAIMED = ClaimedDelivery(
    app_id="default",
    delivery_id=IDS[0],
    lease_token=IDS[1],
    notification_id=IDS[2],
    user_id="bob",
    device_id="bobs phone",
    platform="ANDROID",
    registration_token=TOKEN,
    token_registered_at=datetime(2100, 1, 1, tzinfo=UTC),
    kind=Kind.SYNC,
    type="",
    scope="bobs",
    epoch="",
    sequence=1,
    content=Content(),
    collapse_key="",
    lane=Lane.HIGH,
    attempt=1,
    ttl_s=1.0,
    age_s=1.0,
    held=False,
    seen=False,
)
NOTIFICATION = NewNotification(
    "default", IDS[2], Kind.MESSAGE, "user:bob", Content(title="t"), (Target(user_id="bob"), Target(scope="bobs"))
)
REQUEST = RequestKey("default", "user:bob", "PublishChanges", "r bobs", b"")
MEMBERS = [Member("bobs", "mallory", MemberRole.WRITER)]
WRITE = [("default", 99, NewChange("bobs", "k", "{}"))]


async def no_answers(_indexes: Sequence[int]) -> list[str]:
    return ['"carried out"']


async def others_who_joined(conn: Connection) -> list[tuple[str, str]]:
    return [joiner for joiner in await sync.recent_joiners(conn, 1e6, 100) if joiner != ("default", "alice")]


Attempt = Callable[[Connection], Awaitable[object]]
SEEN: dict[Callable[..., Any], Attempt] = {
    directory.lock_token: lambda c: directory.lock_token(c, "default", DIGEST),
    directory.release_token: lambda c: directory.release_token(c, THEFT, DIGEST),
    directory.count_devices: lambda c: directory.count_devices(c, "default", "bob", ""),
    directory.delete_device: lambda c: directory.delete_device(c, "default", "bob", "bobs phone"),
    directory.find_device: lambda c: directory.find_device(c, "default", "bob", "bobs phone"),
    directory.list_devices: lambda c: directory.list_devices(c, "default", "bob", "", 10),
    directory.known_scopes: lambda c: directory.known_scopes(c, [("default", "bobs")]),
    directory.list_members: lambda c: directory.list_members(c, "default", "bobs", "", 10),
    directory.list_scopes: lambda c: directory.list_scopes(c, "default", "bob", "", 10),
    sync.device_views: lambda c: sync.device_views(c, [PHONE]),
    sync.report_activity: lambda c: sync.report_activity(c, [(PHONE, Activity(battery_low=True))]),
    sync.record_seen: lambda c: sync.record_seen(c, [(PHONE, Cursor("bobs", "e", 1))]),
    sync.heads: lambda c: sync.heads(c, [("default", None, "bobs"), ("default", "bob", "bobs")]),
    sync.changes_between: lambda c: sync.changes_between(c, [sync.FeedRead("default", "bobs", "e", 0, 99, 10)]),
    sync.member_scopes: lambda c: sync.member_scopes(c, "default", "bob"),
    sync.joined_starts: lambda c: sync.joined_starts(c, "default", "bob", ["bobs"], 10.0),
    sync.recent_joiners: others_who_joined,
    sync.starts: lambda c: sync.starts(c, "default", ["bobs"], EVER),
    sync.current_heads: lambda c: sync.current_heads(c, [("default", "bobs")]),
    sync.changed_scopes: lambda c: sync.changed_scopes(c, ["default", "other"], 1e6, 10),
    sync.lock_scopes: lambda c: sync.lock_scopes(c, [("default", "bobs"), ("default", "shared")], create=False),
    sync.key_sequences: lambda c: sync.key_sequences(c, [("default", "bobs", "k")]),
    sync.advance_heads: lambda c: sync.advance_heads(c, [("default", "bobs", 99, 1)], 900.0),
}
REFUSED: dict[Callable[..., Any], Attempt] = {
    directory.upsert_device: lambda c: directory.upsert_device(c, REGISTRATION, None),
    directory.record_move: lambda c: directory.record_move(c, REGISTRATION, DIGEST, ("bob", "d"), "user:bob"),
    directory.lock_scope: lambda c: directory.lock_scope(c, "default", "bobs"),
    sync.drop_scopes: lambda c: sync.drop_scopes(c, [("default", "bobs")]),
    directory.add_members: lambda c: directory.add_members(c, "default", "bobs", MEMBERS),
    directory.remove_members: lambda c: directory.remove_members(c, "default", "bobs", ["bob"]),
    sync.write_changes: lambda c: sync.write_changes(c, WRITE),
    push.insert_notifications: lambda c: push.insert_notifications(c, [NOTIFICATION]),
    push.insert_deliveries: lambda c: push.insert_deliveries(c, [NOTIFICATION]),
    push.cancel_waiting: lambda c: push.cancel_waiting(c, "default", "bob", "bobs phone"),
    push.find_notification: lambda c: push.find_notification(c, "default", IDS[2]),
    push.list_deliveries: lambda c: push.list_deliveries(c, "default", DeliveryFilter(), None, 10),
    queue.claim: lambda c: queue.claim(c, IDS[1], 30.0, 10),
    queue.close_trailed_windows: lambda c: queue.close_trailed_windows(c, IDS[1]),
    queue.claimed: lambda c: queue.claimed(c, IDS[1], IDS),
    queue.finish: lambda c: queue.finish(c, [Finished(CLAIMED, DeliveryState.SENT, Reason.NONE)]),
    queue.extend: lambda c: queue.extend(c, IDS, 30.0),
    queue.rescue: lambda c: queue.rescue(c, 10),
    queue.release: lambda c: queue.release(c, IDS),
    queue.forget_windows: lambda c: queue.forget_windows(c, 10),
    idempotency.answer_once: lambda c: idempotency.answer_once(c, [REQUEST], no_answers),
    idempotency.forget_old: lambda c: idempotency.forget_old(c, 10),
}
SEEN[queue.drop_dead_tokens] = lambda c: queue.drop_dead_tokens(c, [CLAIMED])
STRANGERS = (RowOwner("default", "mallory"), RowOwner("other", "bob"), RowOwner("default", ""), RowOwner("", ""))


def functions(module: ModuleType) -> set[Callable[..., Any]]:
    """What a store offers."""
    found = inspect.getmembers(module, inspect.iscoroutinefunction)
    return {made for name, made in found if made.__module__ == module.__name__ and not name.startswith("_")}


def is_nothing(answer: object) -> bool:
    return not answer or (isinstance(answer, list) and not any(answer))


async def test_no_store_function_is_left_out() -> None:
    offered = set[Callable[..., Any]]().union(*map(functions, (directory, sync, push, queue, idempotency)))
    assert offered == SEEN.keys() | REFUSED.keys()


@pytest.mark.parametrize("owner", STRANGERS, ids=lambda owner: f"{owner.app_id}-{owner.user_id}")
async def test_stores_show_and_change_nothing_in_a_strangers_transaction(
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


SILENT = {sync.report_activity, sync.record_seen, sync.advance_heads, queue.drop_dead_tokens, directory.lock_token}
LAST: list[Callable[..., Any]] = [
    directory.release_token,
    directory.delete_device,
]  # these take away what the others look at


async def test_the_same_attempts_succeed_for_the_service(peopled: Server, database: Database) -> None:
    """Otherwise the test above would pass by asking for what is not there."""
    for function in [*(SEEN.keys() - SILENT - {*LAST}), *LAST]:
        async with database.connection() as conn:
            assert not is_nothing(await SEEN[function](conn)), function.__qualname__
    await peopled.register("bob", PHONE.device_id, TOKEN)
    epoch = (await peopled.backend(sync_service_pb2.ListChangesRequest(cursor=at("bobs")))).next_cursor.epoch

    async def seen(conn: Connection) -> None:
        await sync.record_seen(conn, [(PHONE, Cursor("bobs", epoch, 1))])

    for function in (sync.report_activity, sync.advance_heads, sync.record_seen, queue.drop_dead_tokens):
        before = await peopled.rows()
        async with database.connection() as conn:
            await (seen if function is sync.record_seen else SEEN[function])(conn)
        assert await peopled.rows() != before, function.__qualname__


READERS: dict[str, Attempt] = {
    "locks nothing": lambda c: sync.lock_scopes(c, [("default", "shared")], create=False),
    "moves no head": lambda c: sync.advance_heads(c, [("default", "shared", 99, 1)], 900.0),
}


async def test_a_reader_writes_nothing_by_the_stores(peopled: Server, database: Database) -> None:
    alice, before = RowOwner("default", "alice"), await peopled.rows()
    for name, attempt in READERS.items():
        async with database.transaction(alice) as conn:
            assert is_nothing(await attempt(conn)), name
    for key in ("k", "new"):
        with pytest.raises(StatementRejected) as caught:
            async with database.transaction(alice) as conn:
                await sync.write_changes(conn, [("default", 99, NewChange("shared", key, "{}"))])
        assert caught.value.sqlstate == "42501"
    async with database.transaction(alice) as conn:
        members = await directory.list_members(conn, "default", "shared", "", 10)
    assert [member.user_id for member in members] == ["alice"]
    assert await peopled.rows() == before


# ------------------------------------------------------------------------------------------------------------ two apps

APPS = """
[apps.other]
jwt_issuer = "another issuer"
jwt_secrets = "o1=fedcba9876543210fedcba9876543210"
"""
OTHER = KeyRow("other", "another issuer", "authenticated", "o1", "HS256", "fedcba9876543210fedcba9876543210")


@pytest.fixture
async def two_apps(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    """A server of two apps, in each of which a user `u` with a device `d` has a scope `s`."""
    file = tmp_path / "apps.toml"
    file.write_text(APPS, encoding="utf-8")
    variables: Any = {"APPS_FILE": str(file)}
    async with running_server(database_urls, redis_url, **variables) as running:
        for app_id in ("default", "other"):
            await running.register("u", "d", "one token", app_id)
            await running.add("s", "u", app_id=app_id)
        yield running


async def test_two_apps_with_the_same_names_see_nothing_of_each_other(two_apps: Server) -> None:
    here, there = two_apps.user("u"), two_apps.user("u", key=OTHER)
    streams = [here.watch(device_id="d"), there.watch(device_id="d")]
    for stream in streams:
        await stream.opened()
    request = publish(change("s", "ours"), trigger=core_pb2.SyncTrigger(type="t"), request_id="r")
    assert not (await here(request)).replayed
    await two_apps.publish("s", "theirs", "1", app_id="other")
    request_there = publish(change("s", "their own"), request_id="r")
    assert not (await there(request_there)).replayed

    page = sync_service_pb2.ListChangesRequest(cursor=at("s"))
    assert [row.key for row in (await here(page)).changes] == ["ours"]
    assert [row.key for row in (await there(page)).changes] == ["theirs", "their own"]
    assert (await streams[0].next("change")).key == "ours"
    assert (await streams[1].next("change")).key == "theirs"
    assert (await streams[1].next("change")).key == "their own"
    for app_id, count in (("default", 1), ("other", 0)):
        deliveries = push_service_pb2.ListDeliveriesRequest(app_id=app_id)
        assert len((await two_apps.backend(deliveries)).deliveries) == count


async def test_devices_and_notifications_stay_in_their_app(two_apps: Server) -> None:
    here, there = two_apps.user("u"), two_apps.user("u", key=OTHER)
    device = directory_service_pb2.GetDeviceRequest(device_id="d")
    for caller in (here, there):  # the same registration token did not move from one to the other
        assert (await caller(device)).device.token_state == directory_service_pb2.TOKEN_STATE_ACTIVE
    await there(directory_service_pb2.UnregisterDeviceRequest(device_id="d"))
    assert (await here(device)).device.device_id == "d"
    assert (await there.refusal(device)).told == DENIED
    sent = push_service_pb2.SendNotificationRequest(
        user_ids=core_pb2.UserIds(ids=["u"]), notification=core_pb2.Notification(title="t")
    )
    notification_id = (await two_apps.backend(sent)).notification_id
    asked = push_service_pb2.GetNotificationRequest(app_id="other", notification_id=notification_id)
    assert (await two_apps.backend.refusal(asked)).told == ("NOT_FOUND", "NOT_FOUND")
    sent.app_id = "other"
    assert (await two_apps.backend(sent)).delivery_count == 0


async def test_a_service_that_follows_all_scopes_follows_those_of_one_app(two_apps: Server) -> None:
    stream = two_apps.backend.watch(app_id="other", all_scopes=True)
    await stream.opened()
    await two_apps.publish("s", "ours")
    await two_apps.publish("t", "theirs", app_id="other")
    assert (await stream.next("change")).key == "theirs"
