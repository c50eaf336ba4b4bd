"""The chapter of a wake-up that is lost on its way: it is sent again until the phone has fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, push_service_pb2, sync_service_pb2
from syncbeat_server.devtools.demo.devices import cursor_of
from syncbeat_server.devtools.demo.report import Report
from syncbeat_server.devtools.demo.stage import Stage

RESENT_AFTER_S = 2
"""For how long an answer is waited for here; 15 s in production."""


async def fetch(phone: SyncbeatClient, device_id: str, scope: str) -> int:
    """What a phone does that was woken; the newest sequence of the scope."""
    request = sync_service_pb2.ListChangesRequest(device_id=device_id, cursor=core_pb2.ScopeCursor(scope=scope))
    answer = await phone.sync.ListChanges(request)
    return int(answer.next_cursor.sequence)


async def lose_a_wake_up(
    stage: Stage, report: Report, backend: SyncbeatClient, phone: SyncbeatClient, device_id: str, scope: str
) -> int:
    """Wake a phone that does not hear it at first; the sequence of the change it was for."""
    report.chapter("FCM takes a wake-up, and the phone does not hear of it")
    screens = stage.screens
    known = await screens.deliveries(device_id)
    before = await screens.device(device_id)
    change = core_pb2.NewChange(scope=scope, key="reminder", merge_patch_json="{}")
    published = await backend.sync.PublishChanges(
        sync_service_pb2.PublishChangesRequest(changes=[change], trigger=core_pb2.SyncTrigger(type="reminder"))
    )
    sequence = int(published.results[0].sequence)
    pushes = (await screens.wait_for(device_id, len(known) + 2))[len(known) :]
    report.claim(
        f"nobody fetched, so after {RESENT_AFTER_S} s it was sent again, as the same delivery",
        [cursor_of(push) for push in pushes] == [sequence] * 2 and len(_ids(pushes)) == 1,
        f"{len(pushes)} pushes",
    )
    report.claim("now the phone fetches", await fetch(phone, device_id, scope) == sequence)
    await asyncio.sleep(RESENT_AFTER_S * 1.3)
    wanted = push_service_pb2.DeliveryFilter(notification_id=published.notification_id, user_id="bob")
    answer = await backend.push.ListDeliveries(push_service_pb2.ListDeliveriesRequest(filter=wanted))
    after = await screens.device(device_id)
    attempts = answer.deliveries[0].attempts
    report.claim(
        "and is left alone; its screen showed nothing of all this",
        attempts == 2 and after["shown"] == before["shown"],
        f"{attempts} attempts",
    )
    return sequence


def _ids(pushes: Sequence[dict[str, dict[str, dict[str, str]]]]) -> set[str]:
    return {push["message"]["data"]["delivery_id"] for push in pushes}
