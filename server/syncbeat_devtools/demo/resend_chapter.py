"""The resend chapter: a lost wake-up is sent again until the phone has fetched."""

from __future__ import annotations

import asyncio
from typing import Any

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, push_service_pb2, sync_service_pb2
from syncbeat_devtools.demo.devices import cursor_of, eventually
from syncbeat_devtools.demo.report import Report
from syncbeat_devtools.demo.stage import Stage

RESEND_AFTER_S = 2
"""Seconds without a fetch before a wake-up is sent again; 15 s in production."""


async def fetch(phone: SyncbeatClient, device_id: str, scope: str) -> int:
    """Fetch changes as a woken phone does. Returns the newest sequence of the scope."""
    request = sync_service_pb2.ListChangesRequest(device_id=device_id, cursor=core_pb2.ScopeCursor(scope=scope))
    answer = await phone.sync.ListChanges(request)
    return int(answer.next_cursor.sequence)


async def play_resend_chapter(
    stage: Stage, report: Report, backend: SyncbeatClient, phone: SyncbeatClient, device_id: str, scope: str
) -> int:
    """Wake a phone that does not react at first. Returns the sequence of the change."""
    report.chapter("FCM takes a wake-up, and the phone does not hear of it")
    fake_fcm = stage.fake_fcm
    before = await fake_fcm.device(device_id)
    change = core_pb2.NewChange(scope=scope, key="reminder", merge_patch_json="{}")
    published = await backend.sync.PublishChanges(
        sync_service_pb2.PublishChangesRequest(changes=[change], trigger=core_pb2.SyncTrigger(type="reminder"))
    )
    sequence = int(published.results[0].sequence)
    pushes: list[dict[str, Any]] = []

    async def twice() -> bool:
        nonlocal pushes
        pushes = [push for push in await fake_fcm.deliveries(device_id) if cursor_of(push) == sequence]
        return len(pushes) >= 2

    came = await eventually(twice)
    report.claim(
        f"nobody fetched, so after {RESEND_AFTER_S} s it was sent again, as the same delivery",
        came and len({push["message"]["data"]["delivery_id"] for push in pushes}) == 1,
        f"{len(pushes)} pushes",
    )
    report.claim("now the phone fetches", await fetch(phone, device_id, scope) == sequence)

    async def attempts() -> int:
        wanted = push_service_pb2.DeliveryFilter(notification_id=published.notification_id, user_id="bob")
        answer = await backend.push.ListDeliveries(push_service_pb2.ListDeliveriesRequest(filter=wanted))
        return int(answer.deliveries[0].attempts)

    await asyncio.sleep(RESEND_AFTER_S * 0.3)  # on a slow machine the next one may have been sent already
    made = await attempts()
    await asyncio.sleep(RESEND_AFTER_S)
    after = await fake_fcm.device(device_id)
    report.claim(
        "and is left alone; its screen showed nothing of all this",
        await attempts() == made and after["shown"] == before["shown"],
        f"{made} attempts",
    )
    return sequence
