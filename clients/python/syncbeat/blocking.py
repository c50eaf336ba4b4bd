"""The client for code without an event loop, such as views of Django and Flask, Celery tasks and scripts.

It calls as `syncbeat.SyncbeatClient` does, with the same deadlines and retries, and blocks its thread meanwhile.
Devices, which follow streams, take the other one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

import grpc

from syncbeat.blocking_channel import BlockingChannel, BlockingToken
from syncbeat.client_options import DEFAULT_RULE, ClientRule, require_timeout
from syncbeat.retry import service_config, shuffles_addresses
from syncbeat.session_tokens import SessionTokens
from syncbeat.v1 import auth_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat.v1.auth_service_pb2_grpc import AuthServiceStub
from syncbeat.v1.directory_service_pb2_grpc import DirectoryServiceStub
from syncbeat.v1.event_service_pb2_grpc import EventServiceStub
from syncbeat.v1.ops_service_pb2_grpc import OpsServiceStub
from syncbeat.v1.push_service_pb2_grpc import PushServiceStub
from syncbeat.v1.sync_service_pb2_grpc import SyncServiceStub

if TYPE_CHECKING:
    from syncbeat.v1.core_pb2 import NewChange, Notification, SyncTrigger

__all__ = ["BlockingToken", "SyncbeatClient"]


class SyncbeatClient:
    """Calls Syncbeat and waits for the answer. Make one for a process, and share it between threads.

    `publish`, `send` and the sessions are what a backend needs most; the attributes have every RPC of a service, with
    the generated messages. A call raises `grpc.RpcError`; `syncbeat.explain` tells its reason. It ends after
    `timeout_s` unless it is given a `timeout` of its own. A call that is safe to repeat is retried up to three times
    when the server is UNAVAILABLE, shuts down or sheds load; an empty `request_id` is filled in, so that publishing
    and sending are safe to repeat too.

    It connects with the first call. One that was made before the process forks, as servers do that load the app first,
    works in the children as long as it has made no call.
    """

    def __init__(
        self,
        address: str,
        *,
        token: BlockingToken = "",
        tls: bool | grpc.ChannelCredentials = True,
        app_id: str = "",
        timeout_s: float = 10.0,
        rule: ClientRule = DEFAULT_RULE,
    ) -> None:
        """Create it; nothing is opened yet.

        Args:
            address: `host:port`, or any other gRPC target.
            token: The caller's token, or a function that returns it. Empty: no credentials are sent.
            tls: True trusts the system's authorities, credentials name others. False sends everything, the token too,
                unencrypted: only on a trusted network.
            app_id: The app of requests that name none; for services that serve several.
            timeout_s: The deadline of calls that name none, in seconds.
            rule: Bounds and channel options.
        """
        require_timeout(timeout_s)
        options = [
            ("grpc.service_config", service_config(shuffle=shuffles_addresses(address))),
            *rule.channel_options.items(),
        ]

        def open_channel() -> grpc.Channel:
            if tls is False:
                return grpc.insecure_channel(address, options)
            return grpc.secure_channel(address, grpc.ssl_channel_credentials() if tls is True else tls, options)

        self._channel = BlockingChannel(open_channel, token, app_id, timeout_s, rule.connection_spacing_s)
        channel = cast(grpc.Channel, self._channel)  # as far as stubs use one
        self.sync = SyncServiceStub(channel)
        self.push = PushServiceStub(channel)
        self.directory = DirectoryServiceStub(channel)
        self.auth = AuthServiceStub(channel)
        self.events = EventServiceStub(channel)
        self.ops = OpsServiceStub(channel)

    def publish(
        self,
        *changes: NewChange,
        trigger: SyncTrigger | None = None,
        source_time: datetime | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> sync_service_pb2.PublishChangesResponse:
        """Publish changes in one transaction; `trigger` wakes the members' devices.

        Give the `request_id` of what causes it (an order, a message) where that may be handled twice: the same id is
        published once, and answered `replayed` from then on. Give the `source_time`, aware of its zone, at which the
        values were made where they may arrive in another order, or from several writers: a change, which is the whole
        value then, is written only if it is later than what its key has, as `results` tell. It is that of the changes
        that have none of their own.
        """
        request = sync_service_pb2.PublishChangesRequest(changes=changes, trigger=trigger, request_id=request_id)
        if source_time is not None:
            _set_source_time(request, source_time)
        return self.sync.PublishChanges(request, timeout=timeout)

    def send(
        self,
        notification: Notification,
        *,
        user_ids: Iterable[str] = (),
        scope: str = "",
        type: str = "",  # noqa: A002  # as the contract names it
        dedupe_key: str = "",
        dedupe_window: timedelta | None = None,
        collapse_key: str = "",
        ttl: timedelta | None = None,
        schedule_time: datetime | None = None,
        critical: bool = False,
        request_id: str = "",
        timeout: float | None = None,
    ) -> push_service_pb2.SendNotificationResponse:
        """Send a notification to all devices of users, or of the members of a scope: one of the two.

        The arguments are the fields of SendNotificationRequest; for what else that has, call `push.SendNotification`.
        """
        users = list(user_ids)
        if bool(users) == bool(scope):
            raise ValueError("want user_ids or a scope, and not both")
        request = push_service_pb2.SendNotificationRequest(
            notification=notification,
            type=type,
            dedupe_key=dedupe_key,
            collapse_key=collapse_key,
            critical=critical,
            request_id=request_id,
        )
        if users:
            request.user_ids.ids.extend(users)
        else:
            request.scope = scope
        if dedupe_window is not None:
            request.dedupe_window.FromTimedelta(dedupe_window)
        if ttl is not None:
            request.ttl.FromTimedelta(ttl)
        if schedule_time is not None:
            request.schedule_time.FromDatetime(schedule_time)
        return self.push.SendNotification(request, timeout=timeout)

    def create_session(
        self,
        user_id: str,
        *,
        device_id: str = "",
        claims: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> SessionTokens:
        """Sign a user in. The app keeps what this returns in a `syncbeat.Session`."""
        request = auth_service_pb2.CreateSessionRequest(
            user_id=user_id, device_id=device_id, claims=claims or {}, request_id=request_id
        )
        return SessionTokens.of(self.auth.CreateSession(request, timeout=timeout))

    def revoke_session(self, user_id: str, session_id: str, *, timeout: float | None = None) -> None:
        """Sign a user out of one session."""
        request = auth_service_pb2.RevokeSessionRequest(user_id=user_id, session_id=session_id)
        self.auth.RevokeSession(request, timeout=timeout)

    def revoke_user(self, user_id: str, *, reason: str = "", timeout: float | None = None) -> None:
        """Take back every token that a user has had until now, of other issuers too."""
        request = auth_service_pb2.RevokeUserRequest(user_id=user_id, reason=reason)
        self.auth.RevokeUser(request, timeout=timeout)

    def close(self) -> None:
        """End the calls in flight and disconnect. No call can be made from then on."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _set_source_time(request: sync_service_pb2.PublishChangesRequest, source_time: datetime) -> None:
    if source_time.tzinfo is None:
        raise ValueError("want a source_time that is aware of its zone")
    for change in request.changes:
        if not change.HasField("source_time"):
            change.source_time.FromDatetime(source_time)
