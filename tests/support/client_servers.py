"""Serves the Python client in tests: a server that follows a script, and real ones."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from syncbeat import SyncbeatClient, Token
from syncbeat.retry import SERVICES
from syncbeat.v1 import core_pb2, sync_service_pb2
from syncbeat_server.app import Stores, serve
from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.ops.settings.load import load_settings
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.ops.settings.types import token_digest
from tests.support.databases import DatabaseUrls
from tests.support.process_rules import PATIENT

WAIT_S = 20.0
SECRET = "0123456789abcdef0123456789abcdef"
BACKEND = "a-token-of-the-backend"
METHODS = {method.name: method for service in SERVICES for method in service.methods}


@dataclass(frozen=True)
class Refusal:
    """An answer that is an error."""

    code: grpc.StatusCode
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """As the real server sends them."""
        trailers: list[tuple[str, str | bytes]] = []
        status = status_pb2.Status(code=self.code.value[0], message="refused")
        if self.reason:
            info = error_details_pb2.ErrorInfo(reason=self.reason, domain="syncbeat", metadata=self.metadata)
            status.details.add().Pack(info)
        if self.retry_after_s is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(round(self.retry_after_s * 1000))
            status.details.add().Pack(retry)
            trailers.append(("grpc-retry-pushback-ms", str(round(self.retry_after_s * 1000))))
        return (("grpc-status-details-bin", status.SerializeToString()), *trailers)


class Hold:
    """As an answer, or as the last of a stream: nothing more comes until the client goes."""


@dataclass(frozen=True)
class Until:
    """As a step of a stream: it goes on when a test says so."""

    event: asyncio.Event


@dataclass(frozen=True)
class Attempt:
    """One call as it reached the server."""

    request: Any
    authorization: str | None
    deadline_s: float | None
    at: float


Stream = list[sync_service_pb2.WatchHintsResponse | Refusal | Hold | Until]


class Scripted(grpc.GenericRpcHandler):
    """Answers each attempt with what was prepared for its method, and keeps what came."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Message | Refusal | Hold | Stream]] = defaultdict(list)
        self.attempts: dict[str, list[Attempt]] = defaultdict(list)
        self.left = asyncio.Event()
        """Set when a client has gone from a call that has `Hold`, whether or not the call was there yet."""

    def prepare(self, method: str, *answers: Message | Refusal | Hold | Stream) -> None:
        """Set what the next attempts of a method are answered with, in turn."""
        self.answers[method] += answers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        name = handler_call_details.method.rpartition("/")[2]
        if METHODS[name].server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(self._unary(name))

    def _unary(self, name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def answer(data: bytes, context: Any) -> bytes:
            given = self._record(name, data, context)
            if isinstance(given, Refusal):
                await context.abort(given.code, "refused", given.trailers())
            if isinstance(given, Hold):
                await asyncio.Event().wait()
            assert isinstance(given, Message)
            return given.SerializeToString()

        return answer

    async def _stream(self, data: bytes, context: Any) -> AsyncIterator[bytes]:
        given = self._record("WatchHints", data, context)
        assert isinstance(given, list)
        for step in given:
            if isinstance(step, Refusal):
                await context.abort(step.code, "refused", step.trailers())
            elif isinstance(step, Hold):
                await asyncio.Event().wait()
            elif isinstance(step, Until):
                await step.event.wait()
            else:
                yield step.SerializeToString()

    def _record(self, name: str, data: bytes, context: Any) -> Message | Refusal | Hold | Stream:
        request = GetMessageClass(METHODS[name].input_type).FromString(data)
        metadata = dict(context.invocation_metadata() or ())
        now = asyncio.get_running_loop().time()
        attempt = Attempt(request, metadata.get("authorization"), context.time_remaining(), now)
        self.attempts[name].append(attempt)
        given = self.answers[name].pop(0)
        if any(isinstance(step, Hold) for step in (given if isinstance(given, list) else [given])):
            context.add_done_callback(lambda _: self.left.set())
        return given


@asynccontextmanager
async def scripted_server(
    given: Scripted | None = None, options: Sequence[tuple[str, int]] = (), listen: str = "127.0.0.1:0"
) -> AsyncIterator[tuple[Scripted, str]]:
    """A scripted server, of one's own if it is given, and its address; `options` are gRPC's."""
    script = given or Scripted()
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((script,))
    port = server.add_insecure_port(listen)
    await server.start()
    try:
        yield script, f"{listen.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(None)


def environment(urls: DatabaseUrls, redis_url: str, port: int) -> dict[str, str]:
    """The settings of a real server."""
    return {
        "SYNCBEAT_LISTEN": f"127.0.0.1:{port}",
        "SYNCBEAT_DATABASE_URL": urls.app_url,
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_DATABASE_POOL_SIZE": "4",
        "SYNCBEAT_ROLE": "rpc",
        "SYNCBEAT_DRAIN_S": "5",
        "SYNCBEAT_JWT_SECRETS": f"k1={SECRET}",
        "SYNCBEAT_JWT_SUBJECTS": "any",
        "SYNCBEAT_SERVICE_TOKENS": f"backend:{token_digest(BACKEND)}:*:*",
    }


@asynccontextmanager
async def real_server(urls: DatabaseUrls, redis_url: str, port: int = 0, **variables: str) -> AsyncIterator[str]:
    """A real server in this process, drained at the end of the block; its address. `variables` are more settings."""
    given = {f"SYNCBEAT_{name}": value for name, value in variables.items()}
    settings = load_settings({**environment(urls, redis_url, port), **given}, env_file=None)
    stop = asyncio.Event()
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(WAIT_S) as limit, asyncio.TaskGroup() as group:
        group.create_task(serve(settings, Stores(urls.app_url, redis_url), Role.RPC, stop, ready.set_result, PATIENT))
        try:
            address = await ready
            limit.reschedule(None)
            yield address
        finally:
            stop.set()
            limit.reschedule(asyncio.get_running_loop().time() + WAIT_S)


def user_token(user_id: str, life_s: float = 3600.0) -> str:
    """An access token of a user; negative lives are over."""
    row = KeyRow(Issuer("default", "syncbeat", uuid_subjects=False), "k1", "HS256", SECRET)
    return mint(row, user_id, datetime.now(UTC), timedelta(seconds=life_s))


def client_of(address: str, token: Token = BACKEND, **options: Any) -> SyncbeatClient:
    """A client without TLS."""
    return SyncbeatClient(address, token=token, tls=False, **options)


async def publish(client: SyncbeatClient, scope: str, *keys: str) -> None:
    """One publish for each key."""
    for key in keys:
        change = core_pb2.NewChange(scope=scope, key=key, merge_patch_json="1")
        await client.sync.PublishChanges(sync_service_pb2.PublishChangesRequest(changes=[change]))
