"""The client: the generated stubs over one channel, with the token, a deadline and retries on every call."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, cast

import grpc
from google.protobuf.message import Message

from syncbeat.connections import Connection, Connections
from syncbeat.errors import explain
from syncbeat.retry import public_paths, service_config
from syncbeat.rules import DEFAULT_RULE, ClientRule
from syncbeat.session import Session
from syncbeat.v1 import core_pb2, sync_service_pb2
from syncbeat.v1.auth_service_pb2_grpc import AuthServiceStub
from syncbeat.v1.directory_service_pb2_grpc import DirectoryServiceStub
from syncbeat.v1.error_reason_pb2 import ErrorReason
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

Token = str | Callable[[], str | Awaitable[str]] | Session
"""A token, what returns the present one, or a user's session, which keeps its own fresh.

What returns it is asked for each call and each attempt of a stream: let it cache.
"""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_LISTS = ("ipv4:", "ipv6:")  # of addresses, of which the first is meant to be tried first
_PUBLIC = public_paths()


class SyncbeatClient:
    """Calls Syncbeat. One attribute for each service; their methods are the RPCs, with the generated messages.

    A call raises `grpc.aio.AioRpcError`; `syncbeat.explain` tells its reason. It ends after `timeout_s` unless it is
    given a `timeout` of its own. What is safe to repeat is repeated up to three times when the server is UNAVAILABLE,
    shuts down or sheds load; so that publishing and sending are safe to repeat too, an empty `request_id` is filled
    in. Without a connection a call fails after those attempts; with `wait_for_ready=True` it waits for one until its
    deadline.
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
        """Make it inside a running event loop; it connects with the first call.

        Args:
            address: `host:port`, or any other gRPC target. Of a name with several addresses each connection takes any;
                a list, `ipv4:10.0.0.1:50051,10.0.0.2:50051`, is gone by in its order.
            token: The caller's token, or what returns it. Empty: no credentials are sent. What it raises, the call
                raises; it has `timeout_s` for its answer.
            tls: True trusts the system's authorities, credentials say what else to trust. False sends everything,
                the token too, unencrypted: only on a trusted network.
            app_id: Goes into requests that name no app; for services that serve several.
            timeout_s: The deadline of calls that name none, in seconds.
            rule: Delays, bounds and channel options. The defaults are good; tests shorten them.
        """
        session = token if isinstance(token, Session) else None
        additions = _Additions(token.token if isinstance(token, Session) else token, app_id, timeout_s)
        credentials = grpc.ssl_channel_credentials() if tls is True else tls or None

        config = service_config(shuffle=not address.startswith(_LISTS))
        options = (("grpc.service_config", config), *rule.channel_options.items())

        def open_channel(connection: Connection) -> grpc.aio.Channel:
            interceptors = [_UnaryInterceptor(additions, session, connection), _StreamInterceptor(additions)]
            if credentials is None:
                return grpc.aio.insecure_channel(address, options, interceptors=interceptors)
            return grpc.aio.secure_channel(address, credentials, options, interceptors=interceptors)

        self._connections = Connections(open_channel, rule.connection_spacing_s)
        self.rule = rule
        channel = cast(grpc.aio.Channel, self._connections)  # what stubs use of one
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
        """Whether a call that is made again may have another token: it was not given as a plain str."""
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
            cursors: Where to resume: the `Watch.cursors` that were kept. A scope without one starts from now.
            activity: What the device says of itself, for the hints.
            user_id: Whose scopes are followed; for services.
            all_scopes: Follow every scope of the app; for services.
            token: Where to resume a watch of all scopes: the `Watch.token` that was kept. Empty: from now, or where
                `cursors` say so from there, which an earlier version may have kept.
            heartbeat_s: The longest time without a checkpoint, 5 to 300 seconds. A stream that is silent for three
                times as long is given up for a new one, on a new connection.
            on_break: Called when a stream has ended that was not drained, for who polls until `is_open` is true again.
        """
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
            on_silence=self._connections.silent,
            renew=renew,
            on_break=on_break,
            rule=self.rule,
        )

    async def close(self) -> None:
        """End what is under way and disconnect. A session is its owner's to close."""
        await self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Additions:
    """What is added to every call."""

    def __init__(self, token: str | Callable[[], str | Awaitable[str]], app_id: str, timeout_s: float) -> None:
        self._token = token
        self._app_id = app_id
        self.timeout_s = timeout_s

    async def details(self, given: grpc.aio.ClientCallDetails, timeout_s: float | None) -> grpc.aio.ClientCallDetails:
        """The call with its deadline and the token, unless it has its own."""
        metadata = grpc.aio.Metadata(*(given.metadata or ()))
        if _path(given) not in _PUBLIC and all(key != "authorization" for key, _ in metadata):
            token = await self._current_token()
            if token:
                metadata.add("authorization", f"Bearer {token}")
        return grpc.aio.ClientCallDetails(
            given.method,
            timeout_s if given.timeout is None else given.timeout,
            metadata,
            given.credentials,
            given.wait_for_ready,
        )

    def request(self, given: _Request) -> _Request:
        """A copy with the app and a request_id, where it has neither; the caller's message stays as it is."""
        if not isinstance(given, Message):
            return given
        missing = {
            name: value
            for name, value in (("app_id", self._app_id), ("request_id", uuid.uuid4().hex))
            if value and name in given.DESCRIPTOR.fields_by_name and not getattr(given, name)
        }
        if not missing:
            return given
        filled = type(given)()
        filled.CopyFrom(given)
        for name, value in missing.items():
            setattr(filled, name, value)
        return filled

    async def _current_token(self) -> str:
        if isinstance(self._token, str):
            return self._token
        answer = self._token()
        if isinstance(answer, str):
            return answer
        async with asyncio.timeout(self.timeout_s):
            return await answer


def _path(details: grpc.aio.ClientCallDetails) -> str:
    method: str | bytes = details.method  # the types say str, the library hands over bytes
    return method.decode() if isinstance(method, bytes) else method


class _UnaryInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, additions: _Additions, session: Session | None, connection: Connection) -> None:
        self._additions = additions
        self._session = session
        self._connection = connection

    async def intercept_unary_unary(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, _Request], Awaitable[grpc.aio.UnaryUnaryCall[_Request, _Response]]
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request: _Request,
    ) -> grpc.aio.UnaryUnaryCall[_Request, _Response]:
        details = await self._additions.details(client_call_details, self._additions.timeout_s)
        filled = self._additions.request(request)
        call = await continuation(details, filled)
        call.add_done_callback(self._connection.ended)
        refused = _bearer(details)
        if self._session is None or not refused or not await _has_expired(call):
            return call
        # A call that was refused did nothing: it is made once more, with a new token.
        await self._session.renew(refused)
        details = await self._additions.details(client_call_details, self._additions.timeout_s)
        call = await continuation(details, filled)
        call.add_done_callback(self._connection.ended)
        return call


def _bearer(details: grpc.aio.ClientCallDetails) -> str:
    for key, value in details.metadata or ():
        if key == "authorization" and isinstance(value, str):
            return value.removeprefix("Bearer ")
    return ""


async def _has_expired(call: grpc.aio.UnaryUnaryCall[_Request, _Response]) -> bool:
    if await call.code() is not grpc.StatusCode.UNAUTHENTICATED:
        return False
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return explain(error).reason == ErrorReason.ERROR_REASON_TOKEN_EXPIRED
    return False


class _StreamInterceptor(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, additions: _Additions) -> None:
        self._additions = additions

    async def intercept_unary_stream(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, _Request], Awaitable[grpc.aio.UnaryStreamCall[_Request, _Response]]
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request: _Request,
    ) -> grpc.aio.UnaryStreamCall[_Request, _Response]:
        details = await self._additions.details(client_call_details, None)
        return await continuation(details, self._additions.request(request))
