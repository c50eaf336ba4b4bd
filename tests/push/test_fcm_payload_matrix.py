"""Every field of a notification, and what goes out for it to Android, iOS and the web, as the fake FCM took it.

The fake checks each field against the reference of `projects.messages`. A case tells all that differs from a title.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncbeat.v1 import core_pb2
from syncbeat_devtools.fake_fcm import FakeFcm, running_fake_fcm
from syncbeat_server.clock import SystemClock
from syncbeat_server.push.content.templates import Template, render
from syncbeat_server.push.model import Content, Kind, Lane, Verdict
from syncbeat_server.push.providers import HttpRule, Message
from syncbeat_server.push.providers.fcm import AccessTokens, FcmProvider
from tests.support.claimed_delivery import MESSAGE

pytestmark = pytest.mark.http

ID = MESSAGE.delivery_id
ABSENT = object()
URL = "https://example.org/chat/1"
OWN = "myapp://chat/1"
BASE: dict[str, Any] = {
    "token": "a-token",
    "data": {"delivery_id": ID, "ack_token": "default.ack"},
    "notification": {"title": "T"},
    "android": {
        "priority": "high",
        "ttl": "3600s",
        "notification": {"tag": ID, "default_sound": True},
    },
    "apns": {
        "headers": {
            "apns-collapse-id": ID,
            "apns-expiration": str(int(MESSAGE.claimed_at.timestamp()) + 3600),
            "apns-push-type": "alert",
            "apns-priority": "10",
        },
        "payload": {"aps": {"sound": "default"}},
    },
    "webpush": {"headers": {"TTL": "3600", "Urgency": "high"}, "notification": {"tag": ID}},
}
SILENT = {
    "notification": ABSENT,
    "android.notification": ABSENT,
    "apns.headers.apns-push-type": "background",
    "apns.headers.apns-priority": "5",
    "apns.payload": {"aps": {"content-available": 1}},
    "webpush.notification": ABSENT,
}
BADGE = {**SILENT, "apns.headers.apns-push-type": "alert", "apns.headers.apns-priority": "10"}
TITLE = Content(title="T")

# By field: the content, and what differs from a bare title, by path.
MATRIX: dict[str, list[tuple[Content, dict[str, Any]]]] = {
    "title": [(TITLE, {}), (Content(body="B"), {"notification": {"body": "B"}})],
    "body": [(replace(TITLE, body='"B"\n'), {"notification.body": '"B"\n'})],
    "data": [
        (replace(TITLE, data={"k": "v"}), {"data.k": "v"}),
        (Content(data={"k": "v"}), {**SILENT, "data.k": "v"}),
    ],
    "image_url": [
        (replace(TITLE, image_url=URL), {"notification.image": URL, "apns.payload.aps.mutable-content": 1}),
    ],
    "sound": [
        (TITLE, {"android.notification.default_sound": True, "apns.payload.aps.sound": "default"}),
        (
            replace(TITLE, sound="ping"),
            {
                "android.notification.sound": "ping",
                "android.notification.default_sound": ABSENT,
                "apns.payload.aps.sound": "ping",
            },
        ),
    ],
    "badge": [
        (replace(TITLE, badge=3), {"android.notification.notification_count": 3, "apns.payload.aps.badge": 3}),
        (replace(TITLE, badge=0), {"apns.payload.aps.badge": 0}),  # 0 is "one more" to Android
        (Content(badge=0), {**BADGE, "data.badge": "0", "apns.payload": {"aps": {"badge": 0}}}),
        (Content(badge=7), {**BADGE, "data.badge": "7", "apns.payload": {"aps": {"badge": 7}}}),
        (
            Content(badge=0, data={"k": "v"}),
            {
                **BADGE,
                "data": {"k": "v", **BASE["data"], "badge": "0"},
                "apns.payload": {"aps": {"badge": 0, "content-available": 1}},
            },
        ),
        (
            Content(badge=0, sound="ping"),
            {**BADGE, "data.badge": "0", "apns.payload": {"aps": {"badge": 0, "sound": "ping"}}},
        ),
    ],
    "click_action": [
        (
            replace(TITLE, click_action="OPEN"),
            {"android.notification.click_action": "OPEN", "apns.payload.aps.category": "OPEN"},
        ),
        (replace(TITLE, click_action=URL), {"data.click_action": URL, "webpush.fcm_options": {"link": URL}}),
        (replace(TITLE, click_action=OWN), {"data.click_action": OWN}),
        (
            replace(TITLE, click_action="HTTPS://example.org"),
            {"data.click_action": "https://example.org", "webpush.fcm_options": {"link": "https://example.org"}},
        ),
    ],
    "channel_id": [(replace(TITLE, channel_id="news"), {"android.notification.channel_id": "news"})],
    "template": [
        (Content(template="note", variables={"who": "Anna"}), {"notification": {"title": "Anna", "body": "!"}})
    ],
    "variables": [(Content(template="note", variables={"who": ""}), {"notification": {"body": "!"}})],
}
CASES = [(name, *case) for name, cases in MATRIX.items() for case in cases]
TEMPLATES = {"note": Template.parse({"default": ("{who}", "!")})}


def changed(paths: dict[str, Any]) -> dict[str, Any]:
    """The base, with what differs."""
    message = deepcopy(BASE)
    for path, value in paths.items():
        *way, last = path.split(".")
        place = message
        for name in way:
            place = place[name]
        if value is ABSENT:
            del place[last]
        else:
            place[last] = deepcopy(value)
    return message


@pytest.fixture
async def fake() -> AsyncIterator[FakeFcm]:
    async with running_fake_fcm() as running:
        yield running


@pytest.fixture
async def provider(fake: FakeFcm, tmp_path: Path) -> AsyncIterator[FcmProvider]:
    fake.write_service_account(tmp_path / "account.json")
    clock = SystemClock()
    opened = FcmProvider(AccessTokens(tmp_path / "account.json", clock), fake.base_url, HttpRule(10), clock)
    yield opened
    await opened.close()


def test_payload_matrix_covers_every_field() -> None:
    shown = set(Content.__slots__) - {"texts"}  # which stand in for a template
    assert set(MATRIX) == set(core_pb2.Notification.DESCRIPTOR.fields_by_name) == shown


@pytest.mark.parametrize(("field", "content", "paths"), CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)])
async def test_payload_of_each_field(
    fake: FakeFcm, provider: FcmProvider, field: str, content: Content, paths: dict[str, Any]
) -> None:
    told = render(content, TEMPLATES, "")
    outcome = await provider.send(Message(MESSAGE, told, "default.ack"))
    assert outcome.verdict is Verdict.SENT
    [record] = fake.deliveries()
    assert record.message == changed(paths), field


@pytest.mark.parametrize("content", [TITLE, Content(badge=0), Content()])
async def test_payload_of_normal_priority_and_of_wake_ups(
    fake: FakeFcm, provider: FcmProvider, content: Content
) -> None:
    await provider.send(Message(replace(MESSAGE, lane=Lane.NORMAL), content, "default.ack"))
    wake_up = replace(MESSAGE, lane=Lane.NORMAL, kind=Kind.SYNC, scope="s", epoch="e", sequence=7)
    await provider.send(Message(wake_up, content, "default.ack"))
    of_message, of_wake_up = (record.message for record in fake.deliveries())
    for told in (of_message, of_wake_up):
        assert (told["android"]["priority"], told["webpush"]["headers"]["Urgency"]) == ("normal", "normal")
        assert told["apns"]["headers"]["apns-priority"] == "5"
        assert told["apns"]["headers"]["apns-push-type"] == ("background" if content == Content() else "alert")
    cursor = {"syncbeat": "sync", "type": "note", "scope": "s", "epoch": "e", "sequence": "7"}
    assert of_wake_up["data"] == {**of_message["data"], **cursor}


@pytest.mark.parametrize("key", ["chat-1", "x" * 64, "x" * 65, "grüße", 'a "key"', "k" * 128])
async def test_collapse_key_replaces_on_every_platform(fake: FakeFcm, provider: FcmProvider, key: str) -> None:
    for number in (1, 2):
        delivery = replace(MESSAGE, delivery_id=f"d-{number}", collapse_key=key)
        await provider.send(Message(delivery, TITLE, "default.ack"))
    device = fake.device("a-token")
    assert (device.shown, device.replaced, len(device.on_screen)) == (1, 1, 1), "the later one replaces the earlier"
    first, second = (record.message for record in fake.deliveries())
    assert first["android"]["collapse_key"] == key
    for told in (first, second):
        assert (told["android"]["notification"]["tag"], told["webpush"]["notification"]["tag"]) == (key, key)
        collapse_id = told["apns"]["headers"]["apns-collapse-id"]
        assert collapse_id.isascii()
        assert len(collapse_id) <= 64, "Apple's limit"
        assert (collapse_id == key) == (key in ("chat-1", "x" * 64, 'a "key"')), "as it was given, where it fits"
        assert re.fullmatch(r"[A-Za-z0-9_-]{32}", told["webpush"]["headers"]["Topic"]), "RFC 8030, 5.4"
    del first["data"], second["data"]
    assert first == second, "all but the ids are the same"


async def test_collapse_keys_stay_distinct_when_hashed(fake: FakeFcm, provider: FcmProvider) -> None:
    keys = ["x" * 65, "x" * 66, "a", "b", ""]
    for number, key in enumerate(keys):
        delivery = replace(MESSAGE, delivery_id=f"d-{number}", collapse_key=key)
        await provider.send(Message(delivery, TITLE, "default.ack"))
    told = [record.message for record in fake.deliveries()]
    assert fake.device("a-token").replaced == 0
    assert len({message["apns"]["headers"]["apns-collapse-id"] for message in told}) == len(keys)
    topics = [message["webpush"]["headers"].get("Topic") for message in told]
    assert (len(set(topics)), topics[-1]) == (len(keys), None)


async def test_collapse_key_is_absent_on_a_second_copy(fake: FakeFcm, provider: FcmProvider) -> None:
    for delivery in (MESSAGE, MESSAGE, replace(MESSAGE, delivery_id="d-2")):
        await provider.send(Message(delivery, TITLE, "default.ack"))
    device = fake.device("a-token")
    assert (device.shown, device.replaced, len(device.on_screen)) == (2, 1, 2)


async def test_ttl_zero_is_not_stored_by_fcm(fake: FakeFcm, provider: FcmProvider) -> None:
    now = replace(MESSAGE, now_or_never=True, content=Content(title="T"))
    assert (await provider.send(Message(now, now.content, "default.ack"))).verdict is Verdict.SENT
    sent = fake.deliveries()[-1].message
    assert sent["android"]["ttl"] == "0s"
    assert sent["apns"]["headers"]["apns-expiration"] == "0"
    assert sent["webpush"]["headers"]["TTL"] == "0"
