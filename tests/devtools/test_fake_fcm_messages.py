"""Tests what the fake FCM takes and refuses as a message."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.support.fcm_client import FcmClient, Reply, signed_in

pytestmark = pytest.mark.http

FULL: dict[str, Any] = {
    "token": "phone-1",
    "name": "",
    "data": {"delivery_id": "d-1", "k": "v"},
    "notification": {"title": "T", "body": "B", "image": "https://example.com/a.png"},
    "android": {
        "collapse_key": "c",
        "priority": "high",
        "ttl": "3600.500000000s",
        "restricted_package_name": "p",
        "data": {"delivery_id": "d-1"},
        "notification": {
            "tag": "d-1",
            "channel_id": "c",
            "notification_count": 3,
            "sticky": True,
            "visibility": "PUBLIC",
            "notification_priority": "PRIORITY_HIGH",
            "body_loc_args": ["a", "b"],
            "vibrate_timings": ["0.1s", "2s"],
            "light_settings": {"color": {"red": 1, "alpha": 0.5}, "light_on_duration": "1s"},
        },
        "fcm_options": {"analytics_label": "l"},
        "direct_boot_ok": False,
    },
    "apns": {
        "headers": {"apns-collapse-id": "d-1"},
        "payload": {"aps": {"badge": 1, "alert": {"title": "T"}}, "own": [1, None, {"a": 2}]},
        "fcm_options": {"image": "i"},
    },
    "webpush": {"headers": {"TTL": "1"}, "data": {"a": "b"}, "notification": {"title": "T", "vibrate": [1]}},
    "fcm_options": {"analytics_label": "l"},
}

BAD_FIELDS: list[tuple[dict[str, Any], list[str]]] = [
    ({"token": "a", "titel": "x"}, ["message"]),
    ({"token": "a", "to": "x"}, ["message"]),
    ({"token": "a", "android": {"prio": "high"}}, ["message.android"]),
    ({"token": "a", "notification": {"titel": "x"}}, ["message.notification"]),
    ({"token": "a", "notification": {"title": 1}}, ["message.notification.title"]),
    ({"token": "a", "notification": "hello"}, ["message.notification"]),
    ({"token": "a", "data": {"n": 1}}, ["message.data[0].value"]),
    ({"token": "a", "data": {"k": "v", "n": {"x": "y"}}}, ["message.data[1].value"]),
    ({"token": "a", "data": ["x"]}, ["message.data"]),
    ({"token": "a", "data": {"from": "x"}}, ["message.data"]),
    ({"token": "a", "data": {"message_type": "x"}}, ["message.data"]),
    ({"token": "a", "data": {"collapse_key": "x"}}, ["message.data"]),
    ({"token": "a", "data": {"gcm.x": "x"}}, ["message.data"]),
    ({"token": "a", "data": {"google.x": "x"}}, ["message.data"]),
    ({"token": "a", "android": {"data": {"gcm": "x"}}}, ["message.data"]),
    ({"token": "a", "android": []}, ["message.android"]),
    ({"token": "a", "android": {"ttl": 3600}}, ["message.android.ttl"]),
    ({"token": "a", "android": {"ttl": "1h"}}, ["message.android.ttl"]),
    ({"token": "a", "android": {"ttl": "-1s"}}, ["message.android.ttl"]),
    ({"token": "a", "android": {"ttl": "2419201s"}}, ["message.android.ttl"]),
    ({"token": "a", "android": {"priority": "urgent"}}, ["message.android.priority"]),
    ({"token": "a", "android": {"priority": []}}, ["message.android.priority"]),
    ({"token": "a", "android": {"direct_boot_ok": "yes"}}, ["message.android.direct_boot_ok"]),
    ({"token": "a", "android": {"notification": {"tag": 1}}}, ["message.android.notification.tag"]),
    ({"token": "a", "android": {"notification": {"x": 1}}}, ["message.android.notification"]),
    (
        {"token": "a", "android": {"notification": {"body_loc_args": ["a", 1]}}},
        ["message.android.notification.body_loc_args[1]"],
    ),
    (
        {"token": "a", "android": {"notification": {"visibility": "HIDDEN"}}},
        ["message.android.notification.visibility"],
    ),
    ({"token": "a", "apns": {"headers": {"apns-priority": 5}}}, ["message.apns.headers[0].value"]),
    ({"token": "a", "apns": {"payload": "x"}}, ["message.apns.payload"]),
    ({"token": "a", "apns": {"header": {}}}, ["message.apns"]),
    ({"token": "a", "webpush": {"notification": "x"}}, ["message.webpush.notification"]),
    ({"token": "a", "topic": "b"}, ["message"]),
    ({"token": 5}, ["message.token"]),
    ({"topic": "no spaces"}, ["message.topic"]),
    ({}, ["message"]),
    ({"token": ""}, ["message"]),
    ({"token": None}, ["message"]),
]


async def refuse(client: FcmClient, body: bytes) -> Reply:
    reply = await client.post(body)
    assert (reply.status, reply.json["error"]["status"]) == (400, "INVALID_ARGUMENT"), (body[:200], reply.body)
    return reply


async def test_message_fields_are_accepted_in_both_spellings() -> None:
    async with signed_in() as client:
        sent = await client.post(orjson.dumps({"message": FULL}))
        assert sent.status == 200, sent.body
        assert sent.json["name"].startswith("projects/demo-project/messages/0:")
        assert sent.headers["content-type"] == "application/json; charset=UTF-8"
        camel = {"token": "a", "android": {"collapseKey": "c", "notification": {"notificationCount": 1}}}
        assert (await client.post(orjson.dumps({"message": camel, "validateOnly": False}))).status == 200
        nothing: dict[str, Any] = {
            "token": "a",
            "data": None,
            "android": None,
            "apns": {"headers": None, "payload": {"aps": None}},
        }
        assert (await client.send(**nothing)).status == 200
        assert client.fake.deliveries()[0].message == FULL


async def test_message_bad_field_is_named() -> None:
    async with signed_in() as client:
        for message, fields in BAD_FIELDS:
            reply = await refuse(client, orjson.dumps({"message": message}))
            assert reply.bad_fields == fields, message
        assert client.fake.stats().accepted == 0


async def test_message_malformed_is_refused() -> None:
    async with signed_in() as client:
        deep = b'{"message":{"token":"a","apns":{"payload":' + b'{"a":' * 500 + b"1" + b"}" * 503
        bodies = [b"", b"null", b"[]", b"7", b'"x"', b"{", b"\xff\xfe", b"{}", b'{"message":[]}', b'{"message":"x"}']
        bodies += [b'{"messages":{}}', b'{"message":{"token":"\xed\xa0\x80"}}', b'{"message":{"token":"\\ud800"}}']
        bodies += [b'{"message":{"token":"a"},"validate_only":"yes"}', deep, b"[" * 900 + b"]" * 900, b"[" * 9000]
        for body in bodies:
            await refuse(client, body)
        assert (await client.send()).status == 200  # and the connection lives on


async def test_message_bad_token_has_an_fcm_error() -> None:
    async with signed_in() as client:
        for token in ("with space", "tab\t", "é", "x" * 4097):
            reply = await refuse(client, orjson.dumps({"message": {"token": token}}))
            assert (reply.code, reply.bad_fields) == ("INVALID_ARGUMENT", [])
        assert (await client.send("x" * 4096)).status == 200


async def test_payload_limit_is_4096_bytes_and_2048_for_a_topic() -> None:
    async with signed_in() as client:
        for target, limit in (
            ({"token": "a"}, 4096),
            ({"topic": "news"}, 2048),
            ({"condition": "'a' in topics"}, 2048),
        ):
            for extra, status in ((0, 200), (1, 400)):
                # Keys and values count, in UTF-8.
                data = {"key": "é" * 100 + "x" * (limit - 203 + extra)}
                reply = await client.post(orjson.dumps({"message": {**target, "data": data}}))
                assert reply.status == status, (target, extra)
        shown = {"title": "x" * 2000, "body": "y" * 2100}
        assert (await client.send(notification=shown)).code == "INVALID_ARGUMENT"
        assert (await client.send(apns={"payload": {"own": "x" * 4096}})).status == 400
        assert (await client.send(webpush={"notification": {"body": "x" * 4096}})).status == 400
        assert (await client.send(data={"a": "x" * 4090}, android={"data": {"b": "y"}})).status == 200


async def test_payload_limit_counts_apns_and_webpush_but_not_android() -> None:
    async with signed_in() as client:
        quotes = {"body": '"' * 2100}
        assert (await client.send(notification=quotes)).status == 200
        android = {"notification": {"tag": "d"}}
        assert (await client.send(notification=quotes, android=android)).status == 200
        for platform in ({"apns": {"payload": {"aps": {"badge": 1}}}}, {"webpush": {"notification": {"tag": "d"}}}):
            assert (await client.send(notification=quotes, **platform)).code == "INVALID_ARGUMENT"
            assert (await client.send(notification={"body": '"' * 1900}, **platform)).status == 200
        # Exactly: {"aps":{"alert":{"body":"..."},"badge":1}}
        frame = len('{"aps":{"badge":1,"alert":{"body":""}}}')
        for extra, status in ((0, 200), (1, 400)):
            body = "x" * (4096 - frame + extra)
            reply = await client.send(notification={"body": body}, apns={"payload": {"aps": {"badge": 1}}})
            assert reply.status == status


async def test_dry_run_is_validated_and_not_delivered() -> None:
    async with signed_in() as client:
        reply = await client.post(b'{"message":{"token":"fault:unregistered:*"},"validate_only":true}')
        assert reply.json == {"name": "projects/demo-project/messages/fake_message_id"}
        await refuse(client, b'{"message":{},"validate_only":true}')
        assert client.fake.deliveries() == []


async def test_message_names_are_unique() -> None:
    async with signed_in() as client:
        names = {(await client.send()).json["name"] for _ in range(20)}
        assert len(names) == 20
