"""The gRPC server: its methods, limits, health and reflection, and its drain."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from syncbeat.v1 import (
    auth_service_pb2,
    directory_service_pb2,
    event_service_pb2,
    ops_service_pb2,
    push_service_pb2,
    sync_service_pb2,
)
from syncbeat_server.auth.tokens.verify import MAX_TOKEN_BYTES
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.rpc.access import access_policies
from syncbeat_server.rpc.call_context import TrySync
from syncbeat_server.rpc.fastpath.received_metadata import received_metadata
from syncbeat_server.rpc.handler_pipeline import HandlerPipeline
from syncbeat_server.rpc.servicers.health import MAX_WATCHES, HealthServicer
from syncbeat_server.rpc.validation.compression import COMPRESSION_OPTIONS, MAX_REQUEST_BYTES

MAX_METADATA_BYTES = 2 * MAX_TOKEN_BYTES
"""The most metadata of a call, as HTTP/2 counts it; grpc-core refuses more with RESOURCE_EXHAUSTED. It is twice the
longest token, so that a token somewhat too long is still refused with a reason."""

MAX_CONCURRENT_CALLS = 100
"""The most calls at once on a connection, which clients are told and keep: they let others wait, or connect again.
RFC 9113 wants no fewer, and proxies have as many (ADR 117)."""
MAX_UNFREED_CALLS = 100
"""The calls of a connection beside those that may have ended and are not freed yet. As many as may be open, since all
of them may end in one turn of the loop, and an honest client has begun others before they are freed."""

CONTRACT: tuple[ServiceDescriptor, ...] = (
    sync_service_pb2.DESCRIPTOR.services_by_name["SyncService"],
    push_service_pb2.DESCRIPTOR.services_by_name["PushService"],
    directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"],
    auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
    event_service_pb2.DESCRIPTOR.services_by_name["EventService"],
    ops_service_pb2.DESCRIPTOR.services_by_name["OpsService"],
)

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    *COMPRESSION_OPTIONS,
    # The same: between a soft and a hard limit (8 and 16 KiB by default) grpc-core refuses at random.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # grpc-core's defaults (1,000 and 3,000) refuse a reconnect storm with CANCELLED.
    ("grpc.server.max_pending_requests", 50_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # A call that no handler has taken by then ends CANCELLED too, after 30 s by default.
    ("grpc.server_max_unrequested_time_in_server", 120),
    # A call that its client has reset counts until it is freed here, so that a flood of resets is refused at the sum of
    # both (overload_protection is on by default, and relied on: without it such a flood held 1.2 GB after 18 s).
    ("grpc.max_concurrent_streams", MAX_CONCURRENT_CALLS),
    ("grpc.http2.max_deallocating_streams", MAX_UNFREED_CALLS),
    ("grpc.http.overload_protection", 1),
    # Ends TCP connections that send nothing, or do not finish their TLS handshake; two minutes by default.
    ("grpc.server_handshake_timeout_ms", 20_000),
    # Phones ping through NATs; a client may do so every 20 s, also between calls.
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


_GRPC_LOG = logging.getLogger("grpc._cython.cygrpc")


class _MethodTable(grpc.GenericRpcHandler):
    """The handlers by full method name; grpc-core answers UNIMPLEMENTED for others."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of one call, and keep the metadata that gRPC has decoded for it."""
        received_metadata.set(handler_call_details.invocation_metadata)
        return self._handlers.get(handler_call_details.method)


_STREAM_MARGIN_S = 60.0  # for a stream to open, and to send its last checkpoint, while the database is slow


@dataclass(frozen=True)
class ConnectionAge:
    """The age in seconds at which a connection takes no more calls (gRPC varies it by 10 %), and that of a stream.

    A stream may be the last call that a connection takes, so calls open at that age get the whole time of a stream.
    """

    age_s: float
    stream_age_s: float

    def options(self) -> tuple[tuple[str, int], ...]:
        """Return the channel options of a server with these ages."""
        grace_s = self.stream_age_s + _STREAM_MARGIN_S
        ages = ("grpc.max_connection_age_ms", self.age_s), ("grpc.max_connection_age_grace_ms", grace_s)
        return tuple((name, round(seconds * 1000)) for name, seconds in ages)


@dataclass(frozen=True)
class ServerRule:
    """Bounds of a server that no setting changes."""

    silence_s: float = 60.0
    """Seconds after which a connection that sends nothing is pinged."""
    answer_s: float = 20.0
    """Seconds within which it has to answer, or the kernel of its peer to acknowledge (TCP_USER_TIMEOUT)."""
    max_health_watches: int = MAX_WATCHES

    def options(self) -> tuple[tuple[str, int], ...]:
        """Return the channel options that end connections of peers which are gone."""
        answer_ms = round(self.answer_s * 1000)
        return (
            ("grpc.keepalive_time_ms", round(self.silence_s * 1000)),
            ("grpc.keepalive_timeout_ms", answer_ms),
            ("grpc.http2.ping_timeout_ms", answer_ms),
        )


_RULE = ServerRule()


@dataclass(frozen=True)
class Listener:
    """An address to listen on, the setting that names it, and its credentials; None: without TLS."""

    setting: str
    address: str
    credentials: grpc.ServerCredentials | None = None


class RpcServer:
    """Serves the methods of the contract that the servicers implement."""

    def __init__(
        self,
        pipeline: HandlerPipeline,
        servicers: Mapping[str, object],
        *,
        reflection: bool,
        share_port: bool,
        age: ConnectionAge,
        rule: ServerRule = _RULE,
    ) -> None:
        """`servicers` by service name (`SyncService`): each public method of one is the RPC of its name. One may have
        a mapping `try_sync` of methods that can often be answered from memory; see `HandlerPipeline.handler`.

        `share_port` lets other processes of this user listen on the same port; else a port in use is refused.

        Raises:
            ConfigurationError: a method of the contract has no access option, or a servicer one that is not in it.
        """
        _GRPC_LOG.addFilter(_is_worth_logging)
        shared = ("grpc.so_reuseport", int(share_port))
        self._server = grpc.aio.server(options=(shared, *_OPTIONS, *rule.options(), *age.options()))
        services = [service.full_name for service in CONTRACT if service.name in servicers]
        self._response_streams = pipeline.response_streams
        self._health = HealthServicer(services, pipeline.requests, pipeline.response_streams, rule.max_health_watches)
        handlers = {**_handlers(pipeline, servicers), **self._health.handlers()}
        self._server.add_generic_rpc_handlers((_MethodTable(handlers),))
        if reflection:
            from syncbeat_server.rpc.servicers.reflection import ReflectionServicer

            reflected = ReflectionServicer(service.file for service in CONTRACT if service.name in servicers)
            self._server.add_generic_rpc_handlers((_MethodTable(reflected.handlers()),))

    async def start(self, listeners: Sequence[Listener]) -> list[int]:
        """Listen, and return the ports. The health stays NOT_SERVING until `set_serving`, but for liveness.

        Raises:
            ConfigurationError: an address is in use or unusable.
        """
        ports = [self._add(listener) for listener in listeners]
        await self._server.start()
        return ports

    def set_serving(self, services: Collection[str], ready: bool) -> None:
        """Report SERVING for the services of these names, and for the server as a whole if it is `ready`."""
        serving = {service.full_name for service in CONTRACT if service.name in services}
        self._health.set_serving(serving | {""} if ready else serving)

    def drain(self) -> None:
        """Report NOT_SERVING for good, and end streams whose clients do not read."""
        self._health.drain()
        self._response_streams.drain()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish for `grace_s` seconds, then cancel them."""
        await self._server.stop(grace_s)

    def _add(self, listener: Listener) -> int:
        try:
            if listener.credentials is None:
                return self._server.add_insecure_port(listener.address)
            return self._server.add_secure_port(listener.address, listener.credentials)
        except RuntimeError:
            fault = f"cannot listen on {listener.address}; is the port taken?"
            raise ConfigurationError(f"{listener.setting}: {fault}") from None


def _is_worth_logging(record: logging.LogRecord) -> bool:
    # grpc.aio logs an error with a traceback when a caller leaves while a message is on its way, which is none. A
    # failure to send the status is kept: wrong trailing metadata causes it too.
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "ExecuteBatchError" or "SendStatus" in str(error)


def _handlers(pipeline: HandlerPipeline, servicers: Mapping[str, object]) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    handlers = {}
    for service in CONTRACT:
        policies = access_policies(service)
        servicer = servicers.get(service.name)
        implemented = {name for name in dir(servicer) if name[0].isupper()} if servicer is not None else set()
        if not implemented <= policies.keys():
            raise ConfigurationError(f"{service.name}: {sorted(implemented - policies.keys())} are not in the contract")
        for method in service.methods:
            if method.name in implemented:
                path = f"/{service.full_name}/{method.name}"
                try_sync: Mapping[str, TrySync] = getattr(servicer, "try_sync", {})
                handlers[path] = pipeline.handler(
                    method, policies[method.name], getattr(servicer, method.name), try_sync.get(method.name)
                )
    return handlers
