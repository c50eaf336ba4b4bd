"""A few calls of each service, of a server and worker that another interpreter runs."""

from __future__ import annotations

from syncbeat import SyncbeatClient
from syncbeat.v1 import (
    auth_service_pb2,
    core_pb2,
    directory_service_pb2,
    event_service_pb2,
    push_service_pb2,
    sync_service_pb2,
)
from syncbeat_devtools.demo.processes import start_process
from syncbeat_devtools.demo.stage import Stage
from tests.support.fake_clock import wait_until

_USER, _SCOPE = "ann", "couple"


async def smoke(stage: Stage, interpreter: str) -> None:
    """Start a server in the role that does everything, by `interpreter`, and call it; raises as the calls do."""
    log = stage.folder / "smoke.log"
    server = await start_process(["serve"], stage.settings, log, interpreter=interpreter)
    try:
        async with SyncbeatClient(server.address, token=stage.identity.service_token, tls=False) as backend:
            await _sync(backend)
            await _push(backend)
            await _events(backend)
            await _users(backend)
        assert "Traceback" not in server.log_text()
    finally:
        assert await server.stop() == 0


async def _sync(backend: SyncbeatClient) -> None:
    phone = directory_service_pb2.RegisterDeviceRequest(
        user_id=_USER, device_id="phone", platform=directory_service_pb2.PLATFORM_ANDROID, registration_token="t1"
    )
    await backend.directory.RegisterDevice(phone)
    member = directory_service_pb2.ScopeMember(user_id=_USER, role=directory_service_pb2.ROLE_WRITER)
    request = directory_service_pb2.AddScopeMembersRequest(scope=_SCOPE, members=[member])
    assert (await backend.directory.AddScopeMembers(request)).member_count == 1
    change = core_pb2.NewChange(scope=_SCOPE, key="k", merge_patch_json='{"a": 1}')
    published = await backend.sync.PublishChanges(
        sync_service_pb2.PublishChangesRequest(request_id="r1", changes=[change])
    )
    hint = await backend.sync.GetHint(sync_service_pb2.GetHintRequest(user_id=_USER, device_id="phone"))
    assert published.heads[0].sequence == 1
    assert hint.hint.poll_interval.ToSeconds() > 0
    cursor = core_pb2.ScopeCursor(scope=_SCOPE)
    listed = await backend.sync.ListChanges(sync_service_pb2.ListChangesRequest(user_id=_USER, cursor=cursor))
    assert [one.key for one in listed.changes] == ["k"]


async def _push(backend: SyncbeatClient) -> None:
    sent = await backend.push.SendNotification(
        push_service_pb2.SendNotificationRequest(
            user_ids=core_pb2.UserIds(ids=[_USER]), notification=core_pb2.Notification(title="hello")
        )
    )
    request = push_service_pb2.GetNotificationRequest(notification_id=sent.notification_id)

    async def delivered() -> bool:
        found = await backend.push.GetNotification(request)
        return any(one.state == push_service_pb2.DELIVERY_STATE_SENT for one in found.counts)

    await wait_until(delivered, what="the worker sent it")


async def _events(backend: SyncbeatClient) -> None:
    change = core_pb2.NewChange(scope=_SCOPE, key="event", merge_patch_json="1")
    effects = event_service_pb2.EventEffects(changes=[change])
    event = event_service_pb2.IngestEventRequest(source="crm", event_id="e1", type="t", effects=effects)
    for state in (event_service_pb2.EVENT_STATE_ACCEPTED, event_service_pb2.EVENT_STATE_DUPLICATE):
        assert (await backend.events.IngestEvent(event)).receipt.state == state


async def _users(backend: SyncbeatClient) -> None:
    created = await backend.auth.CreateSession(auth_service_pb2.CreateSessionRequest(user_id=_USER))
    refresh = auth_service_pb2.RefreshSessionRequest(refresh_token=created.refresh_token)
    assert (await backend.auth.RefreshSession(refresh)).access_token
    revoked = await backend.auth.RevokeUser(auth_service_pb2.RevokeUserRequest(user_id=_USER))
    assert revoked.revoked_session_count == 1
    await backend.directory.DisableUser(directory_service_pb2.DisableUserRequest(user_id=_USER))
    await backend.directory.EnableUser(directory_service_pb2.EnableUserRequest(user_id=_USER))
    deleted = await backend.directory.DeleteUser(directory_service_pb2.DeleteUserRequest(user_id=_USER))
    assert deleted.device_count == 1
