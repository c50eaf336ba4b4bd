"""Tests that a user sees nothing of others, over any RPC and in the stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.message import Message

from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_server.auth.model import Issuer, KeyRow
from tests.support.databases import DatabaseUrls
from tests.support.isolation import DENIED, PHONE, at, change, people, publish
from tests.support.rpc_server import Refusal, Server, running_server

pytestmark = pytest.mark.rpc


@pytest.fixture
async def peopled(server: Server) -> Server:
    """Bob has a bit of everything; alice has a scope of her own, and reads one of bob's."""
    await people(server)
    return server


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


async def test_isolation_missing_and_forbidden_look_alike(peopled: Server) -> None:
    alice, before = peopled.user("alice"), await peopled.rows()
    for others, absent in (
        *zip(of_a_device(PHONE.device_id), of_a_device("no such device"), strict=True),
        *zip(of_a_scope("bobs"), of_a_scope("no such scope"), strict=True),
    ):
        refused = await alice.refusal(others)
        assert refused.told == DENIED, others
        assert untold(refused) == untold(await alice.refusal(absent)), others
    assert await peopled.rows() == before


async def test_isolation_acting_user_sees_what_the_user_sees(peopled: Server) -> None:
    before = await peopled.rows()
    asked = [cast(Any, request) for request in of_a_scope("bobs")]
    for request in asked:
        request.user_id = "alice"
        assert (await peopled.backend.refusal(request)).told == DENIED, request
    assert await peopled.rows() == before


async def test_isolation_reader_cannot_write(peopled: Server) -> None:
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


async def test_isolation_lists_hold_only_own_rows(peopled: Server) -> None:
    alice, nobody = peopled.user("alice"), peopled.user("nobody")
    devices, scopes = directory_service_pb2.ListDevicesRequest(), directory_service_pb2.ListScopesRequest()
    assert [device.device_id for device in (await alice(devices)).devices] == ["her phone"]
    assert [part.scope for part in (await alice(scopes)).scopes] == ["hers", "shared"]
    assert not (await nobody(devices)).devices
    assert not (await nobody(scopes)).scopes
    hint = (await alice(sync_service_pb2.GetHintRequest(device_id="her phone"))).hint
    assert [head.scope for head in hint.heads] == ["hers", "shared"]


async def test_isolation_device_ids_are_per_user(peopled: Server) -> None:
    register = directory_service_pb2.RegisterDeviceRequest(
        device_id=PHONE.device_id, platform=directory_service_pb2.PLATFORM_WEB
    )
    before = [row for row in (await peopled.rows())["devices"] if "bob," in row]
    await peopled.user("alice")(register)
    await peopled.user("alice")(directory_service_pb2.UnregisterDeviceRequest(device_id=PHONE.device_id))
    assert [row for row in (await peopled.rows())["devices"] if "bob," in row] == before


async def test_isolation_stream_brings_nothing_of_others(peopled: Server) -> None:
    alice = peopled.user("alice").watch(device_id="her phone")
    await alice.opened()
    await peopled.publish("bobs", "secret")
    await peopled.publish("hers", "news")
    events = await alice.until(lambda kind, _: kind == "checkpoint")
    assert [event.key for kind, event in events if kind == "change"] == ["news"]
    assert {cursor.scope for cursor in events[-1][1].cursors} == {"hers", "shared"}


# ------------------------------------------------------------------------------------------------------------ two apps

APPS = """
[apps.other]
jwt_issuer = "another issuer"
jwt_secrets = "o1=fedcba9876543210fedcba9876543210"
jwt_subjects = "any"
"""
OTHER = KeyRow(
    Issuer("other", "another issuer", uuid_subjects=False), "o1", "HS256", "fedcba9876543210fedcba9876543210"
)


@pytest.fixture
async def two_apps(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    """A server of two apps, in each of which a user `u` with a device `d` has a scope `s`."""
    file = tmp_path / "apps.toml"
    file.write_text(APPS, encoding="utf-8")
    variables: Any = {"APPS_FILE": str(file)}
    async with running_server(database_urls, redis_url, **variables) as running:
        for app_id in ("default", "other"):
            await running.register("u", "d", "one-token", app_id)
            await running.add("s", "u", app_id=app_id)
        yield running


async def test_isolation_of_two_apps_with_the_same_names(two_apps: Server) -> None:
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


async def test_isolation_of_devices_and_notifications_by_app(two_apps: Server) -> None:
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


async def test_isolation_firehose_is_of_one_app(two_apps: Server) -> None:
    stream = two_apps.backend.watch(app_id="other", all_scopes=True)
    await stream.opened()
    await two_apps.publish("s", "ours")
    await two_apps.publish("t", "theirs", app_id="other")
    assert (await stream.next("change")).key == "theirs"
