"""PushService over the wire; whether a phone shows it is for the tests of the worker and of the provider."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from typing import Any

import pytest
import redis.asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_server.ops.settings.server import Role
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import wait_until
from tests.support.rpc_server import Server, running_server

pytestmark = pytest.mark.rpc

NOT_THERE = ("NOT_FOUND", "NOT_FOUND")
PENDING, SCHEDULED = push_service_pb2.DELIVERY_STATE_PENDING, push_service_pb2.DELIVERY_STATE_SCHEDULED
SUPPRESSED, CANCELLED = push_service_pb2.DELIVERY_STATE_SUPPRESSED, push_service_pb2.DELIVERY_STATE_CANCELLED
SENT, HELD = push_service_pb2.DELIVERY_STATE_SENT, push_service_pb2.DELIVERY_STATE_HELD
HOUR = Duration(seconds=3600)


def send(**fields: Any) -> push_service_pb2.SendNotificationRequest:
    shown = {"notification": core_pb2.Notification(title="t"), "scope": "s", **fields}
    if {"user_ids", "device_ids"} & fields.keys():
        del shown["scope"]
    return push_service_pb2.SendNotificationRequest(**shown)


def users(*ids: str) -> core_pb2.UserIds:
    return core_pb2.UserIds(ids=ids)


def refs(*pairs: tuple[str, str]) -> core_pb2.DeviceRefs:
    return core_pb2.DeviceRefs(refs=[core_pb2.DeviceRef(user_id=user, device_id=device) for user, device in pairs])


async def deliveries(server: Server, **filter_: Any) -> list[push_service_pb2.Delivery]:
    chosen = push_service_pb2.DeliveryFilter(**filter_)
    answer = await server.backend(push_service_pb2.ListDeliveriesRequest(filter=chosen, page_size=1000))
    return list(answer.deliveries)


async def notification(server: Server, notification_id: str) -> push_service_pb2.GetNotificationResponse:
    answer = await server.backend(push_service_pb2.GetNotificationRequest(notification_id=notification_id))
    assert isinstance(answer, push_service_pb2.GetNotificationResponse)
    return answer


async def people(server: Server) -> Server:
    """Alice has a phone and a tablet without a token, bob a phone; both are in the scope, carol is not."""
    await server.add("s", "alice", "bob")
    await server.register("alice", "phone", "alices-token")
    await server.register("alice", "tablet")
    await server.register("bob", "phone", "bobs-token")
    await server.register("carol", "phone", "carols-token")
    return server


@pytest.fixture
async def ready(server: Server) -> Server:
    """A server without a worker: what is accepted stays where it is."""
    return await people(server)


TARGETS = [
    ({"scope": "s"}, {("alice", "phone"), ("alice", "tablet"), ("bob", "phone")}),
    ({"user_ids": users("alice", "nobody", "alice")}, {("alice", "phone"), ("alice", "tablet")}),
    ({"user_ids": users("carol", "bob")}, {("carol", "phone"), ("bob", "phone")}),
    ({"device_ids": refs(("alice", "phone"), ("alice", "phone"), ("bob", "tablet"))}, {("alice", "phone")}),
    ({"user_ids": users("nobody")}, set[tuple[str, str]]()),
]


@pytest.mark.parametrize(("target", "reached"), TARGETS, ids=["scope", "user", "users", "devices", "nobody"])
async def test_send_notification_targets(ready: Server, target: dict[str, Any], reached: set[tuple[str, str]]) -> None:
    answer = await ready.backend(send(**target))
    assert answer.delivery_count == len(reached)
    found = await deliveries(ready, notification_id=answer.notification_id)
    assert {(delivery.user_id, delivery.device_id) for delivery in found} == reached
    without_token = {("alice", "tablet")} & reached
    assert answer.suppressed_count == len(without_token)
    for delivery in found:
        silent = (delivery.user_id, delivery.device_id) in without_token
        assert delivery.state == (SUPPRESSED if silent else PENDING)
        assert (delivery.reason == push_service_pb2.DELIVERY_REASON_NO_TOKEN) is silent
    counts = {count.state: count.count for count in (await notification(ready, answer.notification_id)).counts}
    assert counts == Counter(delivery.state for delivery in found)


async def test_send_notification_to_a_missing_scope(ready: Server) -> None:
    before = await ready.rows()
    assert (await ready.backend.refusal(send(scope="nowhere", request_id="r"))).told == NOT_THERE
    assert await ready.rows() == before


async def test_get_notification_returns_it_as_sent(ready: Server) -> None:
    shown = core_pb2.Notification(
        title="Ünïcode \U0001f600",
        body="two\nlines",
        data={"key": "value", "empty": ""},
        image_url="https://example.com/i.png",
        sound="ding",
        badge=0,
        click_action="OPEN",
        channel_id="news",
    )
    began = int(time.time())
    due = Timestamp(seconds=began + 600)
    request = send(
        notification=shown,
        type="news",
        dedupe_key="d",
        collapse_key="c",
        priority=core_pb2.PUSH_PRIORITY_HIGH,
        ttl=Duration(seconds=120),
        schedule_time=due,
    )
    told = await notification(ready, (await ready.backend(request)).notification_id)
    assert told.notification == shown
    assert told.notification.HasField("badge")
    assert (told.kind, told.priority) == (push_service_pb2.NOTIFICATION_KIND_MESSAGE, core_pb2.PUSH_PRIORITY_HIGH)
    assert (told.type, told.dedupe_key, told.collapse_key) == ("news", "d", "c")
    assert began <= told.create_time.seconds <= time.time()
    assert told.due_time == due
    assert told.expire_time.seconds - told.due_time.seconds == 120
    assert [(count.state, count.count) for count in told.counts] == [(SCHEDULED, 3)]
    assert (told.resolved, told.expanding) == (False, False)
    assert await deliveries(ready, notification_id=told.notification_id) == []
    defaults = await notification(ready, (await ready.backend(send())).notification_id)
    assert defaults.priority == core_pb2.PUSH_PRIORITY_NORMAL
    assert defaults.expire_time.seconds - defaults.due_time.seconds == 3600
    assert defaults.resolved


@pytest.mark.parametrize("ahead_s", [-40, 40])
async def test_schedule_time_is_independent_of_the_server_clock(
    ready: Server, database_urls: DatabaseUrls, ahead_s: int
) -> None:
    await run_sql(database_urls.owner_url, f"UPDATE test_clock SET at = now() - interval '{ahead_s} seconds'")
    due = Timestamp(seconds=int(time.time()) + 600, nanos=250_000_000)
    told = await notification(ready, (await ready.backend(send(schedule_time=due))).notification_id)
    assert told.due_time == due
    assert told.expire_time.seconds - due.seconds == 3600
    assert not told.resolved
    # Over by the server's clock, but not by the one that decides; and the other way round.
    soon = Timestamp(seconds=int(time.time()))
    told = await notification(ready, (await ready.backend(send(schedule_time=soon))).notification_id)
    assert told.resolved is (ahead_s < 0)


async def test_dedupe_key_sends_one_to_each_device(ready: Server) -> None:
    first = await ready.backend(send(user_ids=users("bob"), dedupe_key="k", dedupe_window=HOUR))
    second = await ready.backend(send(user_ids=users("bob", "carol"), dedupe_key="k", dedupe_window=HOUR))
    other = await ready.backend(send(user_ids=users("bob"), dedupe_key="other", dedupe_window=HOUR))
    assert [answer.suppressed_count for answer in (first, second, other)] == [0, 1, 0]
    states = {d.user_id: (d.state, d.reason) for d in await deliveries(ready, notification_id=second.notification_id)}
    assert states["bob"] == (SUPPRESSED, push_service_pb2.DELIVERY_REASON_DUPLICATE)
    assert states["carol"][0] == PENDING
    for _ in range(2):
        assert not (await ready.backend(send(user_ids=users("bob")))).suppressed_count, "without a key"


async def test_dedupe_window_wakes_each_device_once(ready: Server) -> None:
    trigger = core_pb2.SyncTrigger(type="t", exclude_user_id="alice")
    notifications = []
    for key in ("one", "two", "three"):
        change = core_pb2.NewChange(scope="s", key=key, merge_patch_json="1")
        request = sync_service_pb2.PublishChangesRequest(changes=[change], trigger=trigger)
        notifications.append((await ready.backend(request)).notification_id)
    found = [(await deliveries(ready, notification_id=name)) for name in notifications]
    assert [[delivery.user_id for delivery in each] for each in found] == [["bob"]] * 3
    states = [(each[0].state, each[0].reason) for each in found]
    assert states == [
        (PENDING, push_service_pb2.DELIVERY_REASON_UNSPECIFIED),
        (SCHEDULED, push_service_pb2.DELIVERY_REASON_TRAILING),
        (SUPPRESSED, push_service_pb2.DELIVERY_REASON_MERGED),
    ]
    assert {each[0].scope for each in found} == {"s"}
    told = await notification(ready, notifications[0])
    assert (told.kind, told.type) == (push_service_pb2.NOTIFICATION_KIND_SYNC, "t")


async def test_pagination_and_filter_of_deliveries(ready: Server) -> None:
    for _ in range(3):
        await ready.backend(send())
    everything = await deliveries(ready)
    assert len(everything) == 9
    assert [d.delivery_id for d in everything] == sorted(d.delivery_id for d in everything)
    for filter_, count in (
        ({"user_id": "alice"}, 6),
        ({"user_id": "alice", "device_id": "tablet"}, 3),
        ({"state": PENDING}, 6),
        ({"state": SUPPRESSED, "user_id": "bob"}, 0),
        ({"notification_id": everything[0].notification_id}, 3),
        ({"notification_id": "00000000-0000-7000-8000-000000000000"}, 0),
    ):
        assert len(await deliveries(ready, **filter_)) == count, filter_
    request = push_service_pb2.ListDeliveriesRequest(page_size=4)
    pages = []
    while True:
        page = await ready.backend(request)
        pages.append([delivery.delivery_id for delivery in page.deliveries])
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert [len(page) for page in pages] == [4, 4, 1]
    assert list(itertools.chain(*pages)) == [delivery.delivery_id for delivery in everything]
    request.filter.user_id = "alice"
    assert (await ready.backend.refusal(request)).fields == ("page_token",), "of another list"


async def test_get_notification_of_a_missing_one(ready: Server) -> None:
    request = push_service_pb2.GetNotificationRequest(notification_id="00000000-0000-7000-8000-000000000000")
    assert (await ready.backend.refusal(request)).told == NOT_THERE


async def test_unregister_or_move_cancels_waiting_deliveries(ready: Server) -> None:
    answer = await ready.backend(send(user_ids=users("bob", "carol")))
    await ready.user("bob")(directory_service_pb2.UnregisterDeviceRequest(device_id="phone"))
    await ready.register("alice", "phone", "carols-token")
    found = await deliveries(ready, notification_id=answer.notification_id)
    told = {(delivery.state, delivery.reason) for delivery in found}
    assert told == {(CANCELLED, push_service_pb2.DELIVERY_REASON_DEVICE_GONE)}
    assert len(found) == 2


async def test_worker_sends_accepted_notifications(database_urls: DatabaseUrls, redis_url: str) -> None:
    """With the provider that writes to the log; and a device with a live stream gets its change there."""
    grace: Any = {"STREAM_GRACE_S": "300"}  # which ends when the test says so
    async with (
        running_server(database_urls, redis_url, Role.ALL, **grace) as server,
        redis.asyncio.Redis.from_url(redis_url) as client,
    ):
        await people(server)
        stream = server.user("alice").watch(device_id="phone")
        await stream.opened()

        async def marked() -> bool:
            return bool(await client.keys("syncbeat:*:streams:*"))

        await wait_until(marked)
        await server.backend(send(user_ids=users("carol")))
        change = core_pb2.NewChange(scope="s", key="k", merge_patch_json="1")
        trigger = core_pb2.SyncTrigger(type="t", dedupe_window=Duration())
        request = sync_service_pb2.PublishChangesRequest(changes=[change], trigger=trigger)
        notification_id = (await server.backend(request)).notification_id

        async def of(user_id: str, *states: int) -> Any:
            found = [d for d in await deliveries(server, user_id=user_id) if d.device_id == "phone"]
            return found[0] if [d.state in states for d in found] == [True] else None

        sent = await wait_until(lambda: of("bob", SENT))
        assert (sent.notification_id, sent.attempts) == (notification_id, 1)
        assert sent.HasField("send_time")
        await wait_until(lambda: of("carol", SENT))
        await wait_until(lambda: of("alice", HELD, CANCELLED))

        async def shown() -> bool:
            return any("phone" in row for row in (await server.rows())["device_cursors"])

        await wait_until(shown)
        await run_sql(database_urls.admin_url, "UPDATE deliveries SET due_at = now() WHERE state = 'HELD'")
        ended = await wait_until(lambda: of("alice", SENT, CANCELLED))
        assert ended.reason == push_service_pb2.DELIVERY_REASON_ALREADY_SEEN
