"""Tests what a notification may hold, as callers are told it."""

from __future__ import annotations

from typing import Any

import pytest

from syncbeat.v1 import core_pb2, sync_service_pb2
from tests.push.test_push_service import notification, people, send
from tests.support.rpc_server import Server

pytestmark = pytest.mark.rpc

CASES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"badge": 0}, ()),
    ({"badge": 3}, ()),
    ({"title": "t", "click_action": "https://example.org/a"}, ()),
    ({"title": "t", "click_action": "myapp://a"}, ()),
    ({"title": "t", "click_action": "OPEN", "data": {"click_action": "x", "badge": "1"}}, ()),
    ({}, ("notification",)),
    ({"sound": "ping"}, ("notification",)),
    ({"title": "t", "click_action": "javascript:alert(1)"}, ("notification.click_action",)),
    ({"title": "t", "click_action": "file:///etc/passwd"}, ("notification.click_action",)),
    ({"title": "t", "image_url": "http://example.org/i.png"}, ("notification.image_url",)),
    (
        {"title": "t", "image_url": "i.png", "click_action": "data:,x"},
        ("notification.click_action", "notification.image_url"),
    ),
    (
        {"title": "t", "click_action": "https://example.org", "data": {"click_action": "x"}},
        ('notification.data["click_action"]',),
    ),
    ({"badge": 0, "data": {"badge": "1"}}, ('notification.data["badge"]',)),
    ({"body": '"' * 3071}, ("notification",)),
]


@pytest.fixture
async def ready(server: Server) -> Server:
    return await people(server)


@pytest.mark.parametrize(("fields", "paths"), CASES)
async def test_content_unfit_for_every_platform_is_refused(
    ready: Server, fields: dict[str, Any], paths: tuple[str, ...]
) -> None:
    request = send(notification=core_pb2.Notification(**fields))
    if paths:
        assert sorted((await ready.backend.refusal(request)).fields) == sorted(paths)
    else:
        told = await notification(ready, (await ready.backend(request)).notification_id)
        assert told.notification == core_pb2.Notification(**fields)


async def test_content_of_a_trigger_is_validated_alike(ready: Server) -> None:
    change = core_pb2.NewChange(scope="s", key="k", merge_patch_json="1")
    shown = core_pb2.Notification(title="t", click_action="javascript:alert(1)", image_url="file:///i.png")
    request = sync_service_pb2.PublishChangesRequest(changes=[change], trigger=core_pb2.SyncTrigger(notification=shown))
    fields = (await ready.backend.refusal(request)).fields
    assert sorted(fields) == ["trigger.notification.click_action", "trigger.notification.image_url"]
