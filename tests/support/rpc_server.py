"""A real server in this process, on real stores, and callers that speak to it over a real channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from syncbeat.v1 import auth_service_pb2, core_pb2, directory_service_pb2, sync_service_pb2
from syncbeat_server.app import Stores, serve
from syncbeat_server.app.process_rules import ProcessRules
from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.keys import new_signing_key
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.errors import FieldReason
from syncbeat_server.ops.settings.load import load_settings
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.ops.settings.types import token_digest
from syncbeat_server.rpc.contract.options import access_of
from syncbeat_server.rpc.server import CONTRACT
from syncbeat_server.rpc.servicers.auth import AuthServicer
from syncbeat_server.rpc.servicers.directory import DirectoryServicer
from syncbeat_server.rpc.servicers.events import EventServicer
from syncbeat_server.rpc.servicers.ops import OpsServicer
from syncbeat_server.rpc.servicers.push import PushServicer
from syncbeat_server.rpc.servicers.sync import SyncServicer
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.process_rules import DEADLINE_S, PATIENT

KID, SECRET = "k1", "0123456789abcdef0123456789abcdef"
ISSUER = Issuer("default", "syncbeat", uuid_subjects=False)
KEY = KeyRow(ISSUER, KID, "HS256", SECRET)
SESSION_KEYS = new_signing_key("s1").decode()
BACKEND, OPERATOR = "a-token-of-the-backend", "a-token-of-an-operator"

_COUNTED = ("slo_counts", "slo_marks")
METHODS: dict[str, MethodDescriptor] = {m.input_type.name: m for service in CONTRACT for m in service.methods}
_SERVICERS = (SyncServicer, PushServicer, DirectoryServicer, EventServicer, AuthServicer, OpsServicer)
_OFFERED = {name for servicer in _SERVICERS for name in vars(servicer)}
IMPLEMENTED = [method for method in METHODS.values() if method.name in _OFFERED]
each_implemented = pytest.mark.parametrize("method", IMPLEMENTED, ids=lambda method: method.name)


def entry(name: str, token: str, methods: str = "*", apps: str = "*") -> str:
    """A service or admin token as it stands in the settings."""
    return f"{name}:{token_digest(token)}:{methods}:{apps}"


def path_of(method: MethodDescriptor) -> str:
    """Return how gRPC names a method."""
    return f"/{method.containing_service.full_name}/{method.name}"


@dataclass(frozen=True)
class Refusal:
    """An error that a call ended with."""

    code: grpc.StatusCode
    reason: str
    fields: tuple[str, ...]
    metadata: Mapping[str, str]
    message: str
    pushback: str
    field_reasons: tuple[str, ...] = ()
    """Of each of `fields`."""

    @property
    def told(self) -> tuple[str, str]:
        """Status and reason."""
        return self.code.name, self.reason


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Read an error, which carries exactly one ErrorInfo with the call's id."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    infos: list[error_details_pb2.ErrorInfo] = []
    violations: list[error_details_pb2.BadRequest.FieldViolation] = []
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            infos.append(info)
        elif detail.Unpack(bad):
            violations += bad.field_violations
    assert len(infos) == 1, error
    assert infos[0].domain == "syncbeat"
    assert infos[0].metadata["request_id"] == infos[0].metadata["requestId"] != ""
    assert {violation.reason for violation in violations} <= set(FieldReason)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    pushback = str(trailers.get("grpc-retry-pushback-ms", ""))
    return Refusal(
        error.code(),
        infos[0].reason,
        tuple(violation.field for violation in violations),
        dict(infos[0].metadata),
        status.message,
        pushback,
        tuple(violation.reason for violation in violations),
    )


@dataclass(frozen=True)
class Caller:
    """Somebody who calls; the method is that of the request's type."""

    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str | bytes], ...]

    async def __call__(self, request: Message, timeout_s: float = DEADLINE_S) -> Any:
        """The answer; of a stream its first event."""
        method = METHODS[request.DESCRIPTOR.name]
        answer = await self.raw(method, request.SerializeToString(), timeout_s)
        return GetMessageClass(method.output_type).FromString(answer)

    async def raw(self, method: MethodDescriptor, data: bytes, timeout_s: float = DEADLINE_S) -> bytes:
        """The bytes that these bytes are answered with."""
        options: Any = {"metadata": self.metadata, "timeout": timeout_s}
        channel: Any = self.channel
        if not method.server_streaming:
            return cast(bytes, await channel.unary_unary(path_of(method))(data, **options))
        call = channel.unary_stream(path_of(method))(data, **options)
        try:
            return cast(bytes, await call.read())
        finally:
            call.cancel()

    async def refusal(self, request: Message) -> Refusal:
        """The error that a request is refused with."""
        return await self.raw_refusal(METHODS[request.DESCRIPTOR.name], request.SerializeToString())

    async def raw_refusal(self, method: MethodDescriptor, data: bytes) -> Refusal:
        """The error that these bytes are refused with."""
        refusal = await self.outcome(method, data)
        assert refusal is not None, f"{method.name} was not refused"
        return refusal

    async def outcome(self, method: MethodDescriptor, data: bytes) -> Refusal | None:
        """The error that these bytes are refused with, if they are."""
        try:
            await self.raw(method, data)
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        return None

    def watch(self, **fields: Any) -> Watch:
        """Open WatchHints."""
        open_stream = self.channel.unary_stream(
            path_of(METHODS["WatchHintsRequest"]),
            request_serializer=sync_service_pb2.WatchHintsRequest.SerializeToString,
            response_deserializer=sync_service_pb2.WatchHintsResponse.FromString,
        )
        request = sync_service_pb2.WatchHintsRequest(**fields)
        return Watch(open_stream(request, metadata=self.metadata, timeout=60))


class Watch:
    """An open WatchHints stream."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def read(self) -> tuple[str, Any]:
        """The next event; ("", None) at the end.

        Raises:
            grpc.aio.AioRpcError: the stream ended with an error.
        """
        async with asyncio.timeout(DEADLINE_S):
            answer = await self.call.read()
        if answer is grpc.aio.EOF:
            return "", None
        kind = answer.WhichOneof("event")
        return kind, getattr(answer, kind)

    async def next(self, wanted: str) -> Any:
        """The next event of this kind; those before it are passed over."""
        while True:
            kind, event = await self.read()
            assert kind, f"the stream ended without {wanted}"
            if kind == wanted:
                return event

    async def until(self, matches: Callable[[str, Any], bool]) -> list[tuple[str, Any]]:
        """All events up to the one that matches."""
        events: list[tuple[str, Any]] = []
        while True:
            kind, event = await self.read()
            assert kind, f"the stream ended after {events}"
            events.append((kind, event))
            if matches(kind, event):
                return events

    async def opened(self) -> Any:
        """The first checkpoint: from here on the stream hears of every change."""
        return await self.next("checkpoint")


@dataclass(frozen=True)
class Server:
    """A server in this process."""

    address: str
    channel: grpc.aio.Channel
    urls: DatabaseUrls
    stop: asyncio.Event
    task: asyncio.Task[None]

    def bearer(self, token: str) -> Caller:
        """Return a caller who holds this token."""
        return Caller(self.channel, (("authorization", f"Bearer {token}"),))

    def user(self, user_id: str, life_s: float = 3600, key: KeyRow = KEY) -> Caller:
        """An end user of an app."""
        return self.bearer(mint(key, user_id, datetime.now(UTC), timedelta(seconds=life_s)))

    @property
    def backend(self) -> Caller:
        """A service that may do everything a service may."""
        return self.bearer(BACKEND)

    @property
    def operator(self) -> Caller:
        """An operator that may do everything an operator may."""
        return self.bearer(OPERATOR)

    def allowed(self, request: str) -> Caller:
        """Somebody who may make the call of this request, by the name of its type."""
        options = access_of(METHODS[request])
        return self.backend if "SERVICE" in options or not options else self.operator

    async def rows(self) -> dict[str, list[str]]:
        """Everything that stands in the database, by table, but for who was seen, whoever calls is, what is learned of
        all calls, what is removed after two minutes, who serves, and what is counted of all calls."""
        conn = await asyncpg.connect(self.urls.admin_url)
        try:
            tables = await conn.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
            assert len(tables) > 10
            return {
                name: [row["text"] for row in await conn.fetch(f"SELECT t::text AS text FROM {name} t ORDER BY 1")]
                for (name,) in tables
                if name not in ("users", "app_learning", "change_samples", "touches", "process_status", *_COUNTED)
            }
        finally:
            await conn.close()

    async def add(self, scope: str, *writers: str, readers: tuple[str, ...] = (), app_id: str = "") -> None:
        """Make users members of a scope."""
        roles = [(user, directory_service_pb2.ROLE_WRITER) for user in writers]
        roles += [(user, directory_service_pb2.ROLE_READER) for user in readers]
        members = [directory_service_pb2.ScopeMember(user_id=user, role=role) for user, role in roles]
        await self.backend(directory_service_pb2.AddScopeMembersRequest(app_id=app_id, scope=scope, members=members))

    async def register(self, user: str, device: str, token: str = "", app_id: str = "") -> None:
        """Register a device; with a token it can be pushed to."""
        await self.backend(
            directory_service_pb2.RegisterDeviceRequest(
                app_id=app_id,
                user_id=user,
                device_id=device,
                platform=directory_service_pb2.PLATFORM_ANDROID,
                registration_token=token,
            )
        )

    async def publish(self, scope: str, key: str = "k", patch: str = "1", app_id: str = "") -> int:
        """Publish one change as the backend: its sequence."""
        change = core_pb2.NewChange(scope=scope, key=key, merge_patch_json=patch)
        answer = await self.backend(sync_service_pb2.PublishChangesRequest(app_id=app_id, changes=[change]))
        sequence: int = answer.heads[0].sequence
        return sequence


@asynccontextmanager
async def running_server(
    urls: DatabaseUrls, redis_url: str, role: Role = Role.RPC, rules: ProcessRules = PATIENT, **variables: str
) -> AsyncIterator[Server]:
    """Serve for the block; `variables` are settings beside those that every test needs."""
    environment = {
        "LISTEN": "127.0.0.1:0",
        "JWT_SECRETS": f"{KID}={SECRET}",
        "JWT_SUBJECTS": "any",
        "SESSION_KEYS": SESSION_KEYS,
        "SESSION_SECRETS": f"k1={SECRET}",
        "SERVICE_TOKENS": entry("backend", BACKEND),
        "ADMIN_TOKENS": entry("operator", OPERATOR),
        "DATABASE_POOL_SIZE": "4",
        "DELIVERY_POLL_S": "0.05",
        **variables,
    }
    settings = load_settings({f"SYNCBEAT_{name}": text for name, text in environment.items()}, env_file=None)
    loop = asyncio.get_running_loop()
    stop: asyncio.Event = asyncio.Event()
    ready: asyncio.Future[str] = loop.create_future()
    task = loop.create_task(serve(settings, Stores(urls.app_url, redis_url), role, stop, ready.set_result, rules))
    try:
        await asyncio.wait([task, cast(asyncio.Future[None], ready)], return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await task
        address = ready.result()
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            yield Server(address, channel, urls, stop, task)
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE_S):
            await task


async def hear_each_other(*servers: Server) -> None:
    """Return when these, all of a deployment, hear the wake-ups of each other, and have heard what they said so far.

    That they all answer shows that they listen: what a server does when it begins to is done. Their answers come
    after what they said before, and when they answer again they have heard it.
    """

    async def all_answer() -> bool:
        for server in servers:
            try:
                told = await server.backend(auth_service_pb2.GetTokenCacheStatsRequest())
            except grpc.aio.AioRpcError:  # it does not listen yet
                return False
            assert len(told.processes) <= len(servers)
            if len(told.processes) < len(servers):
                return False
        return True

    for _ in range(2):
        await wait_until(all_answer)
