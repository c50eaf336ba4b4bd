"""Tests what a SyncTrigger may ask for, and in whose name; where it shows something, what callers are told of it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from syncbeat.v1 import core_pb2, push_service_pb2
from syncbeat.v1.sync_service_pb2 import PublishChangesRequest
from tests.push.test_push_service import PENDING, SCHEDULED, deliveries, notification, people, send
from tests.support.rpc_server import Caller, Server

pytestmark = pytest.mark.rpc

OF_ALL = ("delivery_id", "ack_token", "from", "gcm", "google.a", "google.", "gcm.b", "collapse_key", "message_type")
OF_TRIGGERS = ("syncbeat", "type", "scope", "epoch", "sequence", "other_scopes")
FREE = ("From", "google", "googled", "gcm_a", "fromage", "x.google.a", "deliveryid", "title", "notification")


@pytest.fixture
async def ready(server: Server) -> Server:
    return await people(server)


def publish(*scopes: str, user_id: str = "", **trigger: Any) -> PublishChangesRequest:
    changes = [core_pb2.NewChange(scope=scope, key="k", merge_patch_json="1") for scope in scopes or ("s",)]
    wanted = core_pb2.SyncTrigger(**{"type": "t", **trigger})
    return PublishChangesRequest(changes=changes, trigger=wanted, user_id=user_id)


async def woken(server: Server, caller: Caller, **trigger: Any) -> set[tuple[str, str]]:
    notification_id = (await caller(publish(**trigger))).notification_id
    return {(d.user_id, d.device_id) for d in await deliveries(server, notification_id=notification_id)}


@pytest.mark.parametrize("shown", [{"title": "t"}, {"badge": 1}, {}, {"template": "none"}])
async def test_trigger_data_with_reserved_names_is_refused_by_field(ready: Server, shown: dict[str, Any]) -> None:
    for names, of_message in ((OF_ALL, True), (OF_TRIGGERS, False)):
        for name in names:
            data = core_pb2.Notification(data={name: "x", "mine": "y"}, **shown)
            path = f'notification.data["{name}"]'
            assert f"trigger.{path}" in (await ready.backend.refusal(publish(notification=data))).fields
            if of_message:
                assert path in (await ready.backend.refusal(send(notification=data))).fields


async def test_trigger_data_with_similar_names_is_accepted(ready: Server) -> None:
    data = dict.fromkeys(FREE, "x")
    asked = publish(notification=core_pb2.Notification(title="t", data=data))
    told = await notification(ready, (await ready.backend(asked)).notification_id)
    assert told.notification.data == data
    own = data | dict.fromkeys(set(OF_TRIGGERS) - {"syncbeat"}, "x")
    asked_of_message = send(notification=core_pb2.Notification(title="t", data=own))
    assert (await ready.backend(asked_of_message)).delivery_count == 3, "a message has no cursor"


async def test_trigger_alert_of_several_scopes_is_one_delivery_per_device(ready: Server) -> None:
    await ready.add("other", "alice", "bob")
    shown = core_pb2.Notification(title="t")
    answer = await ready.backend(publish("s", "other", notification=shown))
    told = await notification(ready, answer.notification_id)
    assert {(count.state, count.count) for count in told.counts} == {
        (PENDING, 2),
        (push_service_pb2.DELIVERY_STATE_SUPPRESSED, 1),  # the tablet has no token
    }
    assert {d.scope for d in await deliveries(ready, notification_id=answer.notification_id)} == {"other"}
    again = await ready.backend(publish("s", notification=core_pb2.Notification(title="t2")))
    waiting = await deliveries(ready, notification_id=again.notification_id, user_id="bob")
    assert [(d.state, d.reason) for d in waiting] == [(SCHEDULED, push_service_pb2.DELIVERY_REASON_TRAILING)]


@pytest.mark.parametrize(
    ("trigger", "window_s"),
    [
        ({}, 300),
        ({"notification": core_pb2.Notification(data={"k": "v"})}, 30),
        ({"notification": core_pb2.Notification(badge=1)}, 300),
    ],
)
async def test_trigger_dedupe_window_depends_on_what_it_shows(
    ready: Server, trigger: dict[str, Any], window_s: int
) -> None:
    await ready.backend(publish(**{"notification": core_pb2.Notification(title="t"), **trigger}))
    (window,) = {row.split("(")[-1] for row in (await ready.rows())["dedupe_windows"] if "bob" in row}
    assert f"00:0{window_s // 60}:{window_s % 60:02}" in window


@pytest.mark.parametrize("by", ["itself", "a backend in its name"])
async def test_trigger_of_a_user_excludes_only_the_user(ready: Server, by: str) -> None:
    """A device left out is not told of the change: another user could be muted that way."""
    alice, user_id = (ready.user("alice"), "") if by == "itself" else (ready.backend, "alice")
    everybody = {("alice", "phone"), ("alice", "tablet"), ("bob", "phone")}
    for someone in ("bob", "nobody", "Alice"):
        refusal = await alice.refusal(publish(user_id=user_id, exclude_user_id=someone))
        assert refusal.told == ("PERMISSION_DENIED", "ACCESS_DENIED")
    assert await woken(ready, alice, user_id=user_id, type="1", exclude_user_id="alice") == {("bob", "phone")}
    # An id of a device is one within its user's.
    assert await woken(ready, alice, user_id=user_id, type="2", exclude_device_id="phone") == everybody - {
        ("alice", "phone")
    }
    assert await woken(ready, ready.backend, type="3", exclude_device_id="phone") == {("alice", "tablet")}
    assert await woken(ready, ready.backend, type="4", exclude_user_id="bob") == everybody - {("bob", "phone")}


@pytest.mark.parametrize("by", ["itself", "a backend in its name"])
async def test_trigger_of_a_user_has_a_minimum_dedupe_window(ready: Server, by: str) -> None:
    alice, user_id = (ready.user("alice"), "") if by == "itself" else (ready.backend, "alice")
    given = {"a": Duration(), "b": Duration(seconds=1), "c": Duration(seconds=10), "d": Duration(seconds=60)}
    for kind, window in given.items():
        for _ in range(2):
            await alice(publish(user_id=user_id, type=kind, dedupe_window=window, exclude_user_id="alice"))
    found = [d for d in await deliveries(ready) if d.user_id == "bob"]
    assert [d.state for d in found] == [PENDING, SCHEDULED] * 4
    spans = [found[n + 1].due_time.ToSeconds() - found[n].due_time.ToSeconds() for n in range(0, 8, 2)]
    assert all(least <= span <= least + 2 for span, least in zip(spans, (10, 10, 10, 60), strict=True)), spans
    for _ in range(2):
        await ready.backend(publish(type="e", dedupe_window=Duration()))
    assert [d.state for d in await deliveries(ready) if d.user_id == "bob"][8:] == [PENDING] * 2, "a backend has none"
