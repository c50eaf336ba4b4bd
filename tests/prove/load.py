"""Callers that never stop: they send and publish while processes die, and keep what they were promised."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import grpc

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_devtools.demo.devices import StreamingDevice, eventually
from syncbeat_devtools.demo.stage import Stage
from tests.support.delivery_counts import states

USERS = 8
_MAX_TRIES = 200


@dataclass
class Promises:
    """Records what callers were answered."""

    notifications: dict[str, str] = field(default_factory=dict)
    changes: dict[str, list[int]] = field(default_factory=dict)
    failures: int = 0


async def register(backend: SyncbeatClient) -> None:
    """A device and a scope of its own for each user."""
    for number in range(USERS):
        user = f"user-{number}"
        await backend.directory.RegisterDevice(
            directory_service_pb2.RegisterDeviceRequest(
                user_id=user,
                device_id="phone",
                platform=directory_service_pb2.PLATFORM_ANDROID,
                registration_token=f"token-{number}",
            )
        )
        await backend.directory.AddScopeMembers(
            directory_service_pb2.AddScopeMembersRequest(
                scope=f"scope-{number}",
                members=[directory_service_pb2.ScopeMember(user_id=user, role=directory_service_pb2.ROLE_WRITER)],
            )
        )


async def send_for_ever(backend: SyncbeatClient, number: int, promises: Promises, over: asyncio.Event) -> None:
    """One caller: each notification is sent under its id until it is accepted."""
    count = 0
    while not over.is_set():
        request_id = f"send-{number}-{count}"
        count += 1
        request = push_service_pb2.SendNotificationRequest(
            request_id=request_id,
            user_ids=core_pb2.UserIds(ids=[f"user-{number % USERS}"]),
            notification=core_pb2.Notification(title=request_id),
        )
        for _ in range(_MAX_TRIES):
            try:
                answer = await backend.push.SendNotification(request, timeout=5, wait_for_ready=True)
            except grpc.aio.AioRpcError:
                promises.failures += 1
            else:
                promises.notifications[request_id] = answer.notification_id
                break


async def publish_for_ever(backend: SyncbeatClient, number: int, promises: Promises, over: asyncio.Event) -> None:
    """One writer of one scope: each change under its id until it is accepted."""
    scope = f"scope-{number}"
    sequences = promises.changes.setdefault(scope, [])
    count = 0
    while not over.is_set():
        request = sync_service_pb2.PublishChangesRequest(
            request_id=f"publish-{number}-{count}",
            changes=[core_pb2.NewChange(scope=scope, key=f"key-{count}", merge_patch_json=str(count))],
        )
        count += 1
        for _ in range(_MAX_TRIES):
            try:
                answer = await backend.sync.PublishChanges(request, timeout=5, wait_for_ready=True)
            except grpc.aio.AioRpcError:
                promises.failures += 1
            else:
                sequences.append(answer.results[0].sequence)
                break


async def settled(backend: SyncbeatClient, wait_s: float = 120.0) -> dict[str, int]:
    """The counts once nothing waits any more."""
    counts: dict[str, int] = {}

    async def done() -> bool:
        nonlocal counts
        counts = await states(backend)
        return not counts.keys() & {"PENDING", "IN_FLIGHT", "HELD", "SCHEDULED"}

    await eventually(done, wait_s)
    return counts


async def streams(stage: Stage) -> list[tuple[SyncbeatClient, StreamingDevice]]:
    """A stream of each user's phone, on clients of their own."""
    opened = []
    for number in range(USERS):
        client = stage.client(stage.user_token(f"user-{number}"))
        device = StreamingDevice(client, "phone")
        assert await device.wait_open()
        opened.append((client, device))
    return opened
