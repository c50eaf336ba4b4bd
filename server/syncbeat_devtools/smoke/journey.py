"""The steps of `smoke`: what one user, the user's device and a backend do, each checked by its outcome."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass

from syncbeat import SyncbeatClient
from syncbeat.v1 import auth_service_pb2 as auth
from syncbeat.v1 import core_pb2 as core
from syncbeat.v1 import directory_service_pb2 as directory
from syncbeat.v1 import push_service_pb2 as push
from syncbeat.v1 import sync_service_pb2 as sync
from syncbeat_devtools.smoke.steps import StepFailed, Steps
from syncbeat_server.clock import Clock
from syncbeat_server.rpc.deployment import CallError, Deployment, describe_failure, open_client

SCOPE = "syncbeat-smoke"
"""The scope that every run shares: a scope cannot be deleted, so that one of each run's own would stay for ever."""
METHODS = (
    "CreateSession",
    "RegisterDevice",
    "AddScopeMembers",
    "PublishChanges",
    "SendNotification",
    "ListDeliveries",
    "RemoveScopeMembers",
    "DeleteUser",
)
"""The methods that the service's token has to be allowed, where the deployment has keys for sessions."""
METHODS_WITHOUT_SESSIONS = ("EnableUser", "GetHint", "WatchHints")
"""Those that it needs beside them where it has none: the service then acts for the user."""

_USERS = 1_000
"""The user ids that runs draw from: a deleted user leaves a row that keeps its tokens dead (ADR 24)."""
_NAMESPACE = uuid.UUID("6f1d7c1e-0f56-5c0a-9d0e-3d1f6c1b8a52")  # made up, for ids that mean nothing elsewhere
_DEVICE = "smoke-device"
_LOOK_S = 0.2
_PROVIDER_ANSWERED = frozenset({"SENT", "RECEIVED", "OPENED"})
_TOKEN_REFUSED = frozenset({"UNREGISTERED", "REJECTED", "WRONG_SENDER"})
"""Reasons of a DEAD delivery by which a provider says no more than that our made-up registration token is none."""


@dataclass(frozen=True)
class Caller:
    """Calls for the user: by the user's own client, or by the service's, which then names the user."""

    client: SyncbeatClient
    user_id: str


class Journey:
    """One run: its names, and what the steps hand on to each other."""

    def __init__(self, deployment: Deployment, app_id: str, steps: Steps, clock: Clock, chance: random.Random) -> None:
        self._deployment = deployment
        self._app_id = app_id
        self._steps = steps
        self._clock = clock
        self.run_id = f"{chance.getrandbits(64):016x}"
        self.user_id = str(uuid.uuid5(_NAMESPACE, str(chance.randrange(_USERS))))
        self._sequences: list[int] = []
        self._epoch = ""

    async def play(self, timeout_s: float) -> None:
        """Run all steps, in `timeout_s` at most, and clean up. A step that fails is the last one."""
        async with AsyncExitStack() as stack:
            backend = await stack.enter_async_context(open_client(self._deployment, app_id=self._app_id))
            try:
                async with asyncio.timeout(timeout_s):
                    await self._play(backend, stack)
            except (StepFailed, TimeoutError):
                return  # kept with the result of the step
            finally:
                await self._steps.clean_up()

    async def _play(self, backend: SyncbeatClient, stack: AsyncExitStack) -> None:
        run = self._steps.run
        found: list[Caller] = []

        async def user() -> str:
            caller, detail = await self._create_user(backend, stack)
            found.append(caller)
            return detail

        await run("user", user)
        (caller,) = found
        await run("device", lambda: self._register(caller))
        await run("scope", lambda: self._join(backend))
        await run("publish", lambda: self._publish(backend))
        await run("hint", lambda: self._hint(caller))
        await run("stream", lambda: self._stream(caller, backend))
        await run("push", lambda: self._push(backend))

    async def _create_user(self, backend: SyncbeatClient, stack: AsyncExitStack) -> tuple[Caller, str]:
        named = directory.DeleteUserRequest(user_id=self.user_id)
        self._steps.undo_later(f"user {self.user_id}", lambda: backend.directory.DeleteUser(named))
        request = auth.CreateSessionRequest(user_id=self.user_id, device_id=_DEVICE)
        try:
            made = await backend.auth.CreateSession(request)
        except CallError as error:
            if describe_failure(error).reason != "NOT_CONFIGURED":
                raise
            await backend.directory.EnableUser(directory.EnableUserRequest(user_id=self.user_id))
            return Caller(backend, self.user_id), "no keys for sessions: the service acts for the user"
        own = await stack.enter_async_context(open_client(self._deployment, made.access_token))
        return Caller(own, ""), f"{self.user_id} has a session"

    async def _register(self, caller: Caller) -> str:
        answer = await caller.client.directory.RegisterDevice(
            directory.RegisterDeviceRequest(
                user_id=caller.user_id,
                device_id=_DEVICE,
                platform=directory.PLATFORM_ANDROID,
                registration_token=f"syncbeat-smoke-{self.run_id}",
            )
        )
        return f"{answer.device.device_id} is {directory.TokenState.Name(answer.device.token_state)}"

    async def _join(self, backend: SyncbeatClient) -> str:
        leave = directory.RemoveScopeMembersRequest(scope=SCOPE, user_ids=[self.user_id])
        self._steps.undo_later(f"member {self.user_id} of {SCOPE}", lambda: backend.directory.RemoveScopeMembers(leave))
        member = directory.ScopeMember(user_id=self.user_id, role=directory.ROLE_READER)
        await backend.directory.AddScopeMembers(directory.AddScopeMembersRequest(scope=SCOPE, members=[member]))
        return f"is a member of {SCOPE}"

    async def _publish(self, backend: SyncbeatClient) -> str:
        gone = sync.PublishChangesRequest(changes=[core.NewChange(scope=SCOPE, key=self.run_id, deleted=True)])
        self._steps.undo_later(f"key {self.run_id} of {SCOPE}", lambda: backend.sync.PublishChanges(gone))
        return f"sequence {await self._publish_value(backend, 1)}"

    async def _publish_value(self, backend: SyncbeatClient, value: int) -> int:
        change = core.NewChange(scope=SCOPE, key=self.run_id, merge_patch_json=json.dumps({"smoke": value}))
        answer = await backend.sync.PublishChanges(sync.PublishChangesRequest(changes=[change]))
        self._sequences.append(answer.results[0].sequence)
        self._epoch = answer.heads[0].epoch
        return self._sequences[-1]

    def _before(self) -> core.ScopeCursor:
        return core.ScopeCursor(scope=SCOPE, epoch=self._epoch, sequence=self._sequences[0] - 1)

    async def _hint(self, caller: Caller) -> str:
        request = sync.GetHintRequest(user_id=caller.user_id, device_id=_DEVICE, cursors=[self._before()])
        hint = (await caller.client.sync.GetHint(request)).hint
        if not hint.changed:
            raise StepFailed("the hint does not tell of the change that was published before it")
        return f"has news; ask again in {hint.poll_interval.ToMilliseconds() / 1000:g} s"

    async def _stream(self, caller: Caller, backend: SyncbeatClient) -> str:
        request = sync.WatchHintsRequest(user_id=caller.user_id, device_id=_DEVICE, cursors=[self._before()])
        call = caller.client.sync.WatchHints(request)
        try:
            published_at: float | None = None
            async for event in call:
                if event.WhichOneof("event") != "change" or event.change.key != self.run_id:
                    continue
                if published_at is None:  # the one from before the stream was open: now one while it is
                    published_at = self._clock.monotonic()
                    await self._publish_value(backend, 2)
                if event.change.sequence == self._sequences[-1]:
                    return f"both changes came, the second after {self._clock.monotonic() - published_at:.3f} s"
        finally:
            call.cancel()
        raise StepFailed("the server ended the stream before the change came")

    async def _push(self, backend: SyncbeatClient) -> str:
        device = core.DeviceRef(user_id=self.user_id, device_id=_DEVICE)
        accepted = await backend.push.SendNotification(
            push.SendNotificationRequest(
                device_ids=core.DeviceRefs(refs=[device]),
                notification=core.Notification(title="Syncbeat", body="smoke test"),
                critical=True,
            )
        )
        if accepted.delivery_count != 1:
            raise StepFailed(f"want one delivery, {accepted.delivery_count} were accepted")
        request = push.ListDeliveriesRequest(
            filter=push.DeliveryFilter(notification_id=accepted.notification_id), page_size=1
        )
        while True:
            (delivery,) = (await backend.push.ListDeliveries(request)).deliveries
            state = push.DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_")
            reason = push.DeliveryReason.Name(delivery.reason).removeprefix("DELIVERY_REASON_")
            if state in _PROVIDER_ANSWERED:
                return f"{state} after {delivery.attempts} attempt(s)"
            if state == "DEAD" and reason in _TOKEN_REFUSED:
                return f"the provider answered: it does not know the made-up registration token ({reason})"
            if state in ("DEAD", "EXPIRED", "SUPPRESSED", "CANCELLED"):
                raise StepFailed(f"the delivery is {state} / {reason}")
            await asyncio.sleep(_LOOK_S)
