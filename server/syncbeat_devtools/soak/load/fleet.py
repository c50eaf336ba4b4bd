"""The simulated users: each with a device that polls, one that is pushed to, and a session of its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from syncbeat import SyncbeatClient
from syncbeat.poll_schedule import PollSchedule
from syncbeat.v1 import auth_service_pb2 as auth
from syncbeat.v1 import core_pb2 as core
from syncbeat.v1 import directory_service_pb2 as directory
from syncbeat_server.rpc.deployment import CallError, describe_failure

POLLING_DEVICE, PUSHED_DEVICE = "poll", "push"
METHODS = (
    "CreateSession",
    "RegisterDevice",
    "AddScopeMembers",
    "PublishChanges",
    "IngestEvent",
    "SendNotification",
    "GetNotification",
    "DeleteUser",
    "GetSloReport",
)
"""The methods that the service's token has to be allowed, where the deployment has keys for sessions."""
METHODS_WITHOUT_SESSIONS = ("EnableUser", "GetHint", "ListChanges", "WatchHints")
"""Those that it needs beside them where it has none: the service then acts for the users."""

_USERS_A_SCOPE = 4
_AT_ONCE = 16
_ATTEMPTS = 5
_MEMBERS_A_CALL = 1_000
_NAMESPACE = uuid.UUID("0c6f4f5e-7f0b-5b5a-8a53-6f0d9b3a1c77")  # made up, for ids that mean nothing elsewhere


@dataclass
class User:
    """One simulated user. Without an access token the service calls for it, by its id."""

    user_id: str
    scope: str
    schedule: PollSchedule = field(default_factory=PollSchedule)
    cursor: core.ScopeCursor = field(default_factory=core.ScopeCursor)
    access_token: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)
    expires_at: float = float("inf")
    """The end of the access token, in seconds of the epoch as the server's clock has it."""
    is_refreshing: bool = False
    is_polling: bool = False

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the credentials of a call by the user; none where the service calls for it."""
        return (("authorization", f"Bearer {self.access_token}"),) if self.access_token else ()

    @property
    def named(self) -> str:
        """Return the user id that a request has to name: empty in the user's own calls."""
        return "" if self.access_token else self.user_id

    def take(self, tokens: auth.CreateSessionResponse | auth.RefreshSessionResponse) -> None:
        """Use new tokens from now on."""
        self.access_token, self.refresh_token = tokens.access_token, tokens.refresh_token
        self.expires_at = tokens.access_expire_time.ToSeconds()


class Fleet:
    """The users of a run. Their ids follow from the run's, so that a run that resumes has the same ones."""

    def __init__(self, run_id: str, size: int, *, polls: bool = True) -> None:
        scopes = max(1, size // _USERS_A_SCOPE)
        self.run_id = run_id
        self.has_sessions = True
        self.polls = polls
        self.scopes = [f"soak-{run_id}-{number}" for number in range(scopes)]
        self.users = [
            User(str(uuid.uuid5(_NAMESPACE, f"{run_id}/{number}")), self.scopes[number % scopes])
            for number in range(size)
        ]
        for user in self.users:
            user.cursor = core.ScopeCursor(scope=user.scope, sequence=0)

    async def prepare(self, backend: SyncbeatClient) -> None:
        """Sign the users in, register their devices and make them members of their scopes.

        Raises:
            CallError: a call failed five times.
        """
        first, *others = self.users
        await _repeat(lambda: self._sign_in(backend, first))
        await _for_each(others, lambda user: self._sign_in(backend, user))
        for device_id in (POLLING_DEVICE, PUSHED_DEVICE):
            await _for_each(self.users, partial(_register, backend, device_id))
        await _for_each(range(len(self.scopes)), lambda number: self._join(backend, number))

    async def remove(self, backend: SyncbeatClient) -> int:
        """Delete the users. Returns how many could not be deleted."""

        async def delete(user: User) -> None:
            await backend.directory.DeleteUser(directory.DeleteUserRequest(user_id=user.user_id))

        return await _for_each(self.users, delete, raises=False)

    async def _sign_in(self, backend: SyncbeatClient, user: User) -> None:
        if self.has_sessions:
            try:
                user.take(await backend.auth.CreateSession(auth.CreateSessionRequest(user_id=user.user_id)))
            except CallError as error:
                if describe_failure(error).reason != "NOT_CONFIGURED":
                    raise
                self.has_sessions = False
        if not self.has_sessions:
            await backend.directory.EnableUser(directory.EnableUserRequest(user_id=user.user_id))

    async def _join(self, backend: SyncbeatClient, number: int) -> None:
        scope = self.scopes[number]
        members = [
            directory.ScopeMember(user_id=user.user_id, role=directory.ROLE_READER)
            for user in self.users[number :: len(self.scopes)]
        ]
        for first in range(0, len(members), _MEMBERS_A_CALL):
            page = members[first : first + _MEMBERS_A_CALL]
            await backend.directory.AddScopeMembers(directory.AddScopeMembersRequest(scope=scope, members=page))


async def _register(backend: SyncbeatClient, device_id: str, user: User) -> None:
    token = f"soak-{user.user_id}" if device_id == PUSHED_DEVICE else ""
    await backend.directory.RegisterDevice(
        directory.RegisterDeviceRequest(
            user_id=user.user_id,
            device_id=device_id,
            platform=directory.PLATFORM_ANDROID,
            registration_token=token,
        )
    )


async def _for_each(items: Sequence[Any], work: Callable[[Any], Awaitable[None]], *, raises: bool = True) -> int:
    """Do the work for each, a few at once. Returns how many failed; with `raises` the first failure ends it."""
    waiting: Iterable[Any] = iter(items)
    failed = 0

    async def worker() -> None:
        nonlocal failed
        for item in waiting:
            try:
                await _repeat(partial(work, item))
            except CallError:
                if raises:
                    raise
                failed += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(min(_AT_ONCE, len(items))):
            group.create_task(worker())
    return failed


async def _repeat(work: Callable[[], Awaitable[None]]) -> None:
    """Do it again after a failure that passes, up to five times in all."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            await work()
            return
        except CallError as error:
            failure = describe_failure(error)
            if attempt == _ATTEMPTS or not (failure.is_server_fault or failure.code == "RESOURCE_EXHAUSTED"):
                raise
            await asyncio.sleep(failure.retry_after_s or attempt)
