"""The client: the generated stubs, with the token, a deadline and retries on every call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

import grpc

from syncbeat.call_interceptors import CallDefaults, StreamInterceptor, Token, UnaryInterceptor
from syncbeat.client_options import DEFAULT_RULE, ClientRule, require_number, require_timeout
from syncbeat.connections import Connection, Connections
from syncbeat.retry import service_config, shuffles_addresses
from syncbeat.session import Session
from syncbeat.v1 import core_pb2, sync_service_pb2
from syncbeat.v1.auth_service_pb2_grpc import AuthServiceStub
from syncbeat.v1.directory_service_pb2_grpc import DirectoryServiceStub
from syncbeat.v1.event_service_pb2_grpc import EventServiceStub
from syncbeat.v1.ops_service_pb2_grpc import OpsServiceStub
from syncbeat.v1.push_service_pb2_grpc import PushServiceStub
from syncbeat.v1.sync_service_pb2_grpc import SyncServiceStub
from syncbeat.watch import Watch

if TYPE_CHECKING:
    # These exist for the type checker alone.
    from syncbeat.v1.auth_service_pb2_grpc import AuthServiceAsyncStub
    from syncbeat.v1.directory_service_pb2_grpc import DirectoryServiceAsyncStub
    from syncbeat.v1.event_service_pb2_grpc import EventServiceAsyncStub
    from syncbeat.v1.ops_service_pb2_grpc import OpsServiceAsyncStub
    from syncbeat.v1.push_service_pb2_grpc import PushServiceAsyncStub
    from syncbeat.v1.sync_service_pb2_grpc import SyncServiceAsyncStub

_MOST_HEARTBEAT_S = 300.0  # as the contract has it


class SyncbeatClient:
    """Calls Syncbeat. One attribute for each service; their methods are the RPCs, with the generated messages.

    A call raises `grpc.aio.AioRpcError`; `syncbeat.explain` tells its reason. It ends after `timeout_s` unless it is
    given a `timeout` of its own. A call that is safe to repeat is retried up to three times when the server is
    UNAVAILABLE, shuts down or sheds load; an empty `request_id` is filled in, so that publishing and sending are safe
    to repeat too. Without a connection a call fails after those attempts; with `wait_for_ready=True` it waits for one
    until its deadline.
    """

    sync: SyncServiceAsyncStub
    push: PushServiceAsyncStub
    directory: DirectoryServiceAsyncStub
    auth: AuthServiceAsyncStub
    events: EventServiceAsyncStub
    ops: OpsServiceAsyncStub

    def __init__(
        self,
        address: str,
        *,
        token: Token = "",
        tls: bool | grpc.ChannelCredentials = True,
        app_id: str = "",
        timeout_s: float = 10.0,
        rule: ClientRule = DEFAULT_RULE,
    ) -> None:
        """Create it inside a running event loop; it connects with the first call.

        Args:
            address: `host:port`, or any other gRPC target. Each connection takes any address of a name; a list,
                `ipv4:10.0.0.1:50051,10.0.0.2:50051`, is tried in its order.
            token: The caller's token, or a function that returns it. Empty: no credentials are sent. The call raises
                what the function raises; an awaitable has `timeout_s` for its result.
            tls: True trusts the system's authorities, credentials name others. False sends everything, the token too,
                unencrypted: only on a trusted network.
            app_id: The app of requests that name none; for services that serve several.
            timeout_s: The deadline of calls that name none, in seconds.
            rule: Delays, bounds and channel options. The defaults suit phones and backends; tests shorten them.
        """
        require_timeout(timeout_s)
        session = token if isinstance(token, Session) else None
        defaults = CallDefaults(token.token if isinstance(token, Session) else token, app_id, timeout_s)
        credentials = grpc.ssl_channel_credentials() if tls is True else tls or None

        config = service_config(shuffle=shuffles_addresses(address))
        options = (("grpc.service_config", config), *rule.channel_options.items())

        def open_channel(connection: Connection) -> grpc.aio.Channel:
            interceptors = [UnaryInterceptor(defaults, session, connection), StreamInterceptor(defaults)]
            if credentials is None:
                return grpc.aio.insecure_channel(address, options, interceptors=interceptors)
            return grpc.aio.secure_channel(address, credentials, options, interceptors=interceptors)

        self._connections = Connections(open_channel, rule.connection_spacing_s)
        self.rule = rule
        channel = cast(grpc.aio.Channel, self._connections)  # as far as stubs use one
        self._renewable = not isinstance(token, str)
        self.sync = SyncServiceStub(channel)
        self.push = PushServiceStub(channel)
        self.directory = DirectoryServiceStub(channel)
        self.auth = AuthServiceStub(channel)
        self.events = EventServiceStub(channel)
        self.ops = OpsServiceStub(channel)
        self._session = session
        if session is not None:
            session.bind(self.auth)

    @property
    def renews_token(self) -> bool:
        """True if a repeated call may have another token: the token was not given as a plain str."""
        return self._renewable

    def watch(
        self,
        device_id: str = "",
        *,
        cursors: Iterable[core_pb2.ScopeCursor] = (),
        activity: sync_service_pb2.Activity | None = None,
        user_id: str = "",
        all_scopes: bool = False,
        token: str = "",
        heartbeat_s: float = 30.0,
        on_break: Callable[[], None] | None = None,
    ) -> Watch:
        """Follow changes and hints from `cursors` on, over as many streams as it takes. See `Watch`.

        Args:
            device_id: The device that watches, whose pushes are held back meanwhile. Empty: none.
            cursors: The stored `Watch.cursors` to resume by. A scope without one starts from now.
            activity: The device's activity, for the hints.
            user_id: The user whose scopes are followed; for services.
            all_scopes: Follow every scope of the app; for services.
            token: The stored `Watch.token` to resume a watch of all scopes by. Empty: from now, or from `cursors`,
                which an earlier version may have stored.
            heartbeat_s: The longest time without a checkpoint, 5 to 300 seconds. A stream that is silent for three
                times as long is given up for a new one, on a new connection.
            on_break: Called when a stream ended without a drain, for callers that poll until `is_open` is true again.
        """
        require_number("heartbeat_s", heartbeat_s, self.rule.least_heartbeat_s, _MOST_HEARTBEAT_S)
        if token and not all_scopes:
            raise ValueError("token: only with all_scopes; a user's watch resumes by `cursors`")
        request = sync_service_pb2.WatchHintsRequest(
            user_id=user_id, device_id=device_id, cursors=cursors, activity=activity, all_scopes=all_scopes
        )
        if all_scopes:
            request.token = token
        request.heartbeat_interval.FromMilliseconds(round(heartbeat_s * 1000))
        renew = self._session.renew_after_stream if self._session is not None else None
        return Watch(
            self.sync,
            request,
            token_changes=self._renewable,
            on_silence=self._connections.report_silence,
            renew=renew,
            on_break=on_break,
            rule=self.rule,
        )

    async def close(self) -> None:
        """End the calls in flight and disconnect. A session is closed by its owner."""
        await self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
