"""The gRPC server: which methods it has, its limits, health and reflection, and how it ends."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2

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
from syncbeat_server.rpc.access import policies
from syncbeat_server.rpc.handler_pipeline import AtOnce, Interceptors, received_metadata
from syncbeat_server.rpc.servicers.health import SERVICE_NAME, Health

MAX_REQUEST_BYTES = 1_310_720
"""Above it grpc-core answers RESOURCE_EXHAUSTED by itself: 1 MiB of changes and room for their keys."""

MAX_METADATA_BYTES = 2 * MAX_TOKEN_BYTES
"""Of a call, as HTTP/2 counts them: above it grpc-core answers RESOURCE_EXHAUSTED by itself. The longest token has room
for as much again beside it, so that one that is somewhat longer is still told why it is refused."""

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
    # One limit: between a soft and a hard one (8 and 16 KiB unless set) grpc-core refuses by chance.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # grpc-core's defaults (1,000 and 3,000) refuse a reconnect storm with CANCELLED.
    ("grpc.server.max_pending_requests", 50_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # What a client has reset counts until it is freed here, so that a flood of resets is refused at that number (the
    # default, on which we rely: without it such a flood held 1.2 GB after 18 s). Fewer streams would refuse honest
    # clients too: of one with 150 calls at once on a connection that may have 100, half are REFUSED_STREAM.
    ("grpc.max_concurrent_streams", 1_000),
    ("grpc.http.overload_protection", 1),
    # TCP connections that say nothing, or do not finish their TLS handshake; two minutes by default.
    ("grpc.server_handshake_timeout_ms", 20_000),
    # Phones ping through NATs; a client may do so every 20 s, also between calls.
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    # A ping that is not answered in time ends the connection by the latter; the former is what the kernel is told, for
    # octets that nobody acknowledges (TCP_USER_TIMEOUT).
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
)


_GRPC_LOG = logging.getLogger("grpc._cython.cygrpc")


class _Methods(grpc.GenericRpcHandler):
    """The handlers by full method name. What is not there, grpc-core answers UNIMPLEMENTED."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of one call."""
        received_metadata.set(handler_call_details.invocation_metadata)
        return self._handlers.get(handler_call_details.method)


_STREAM_MARGIN_S = 60.0  # a stream opens, and says at its end where it was, while the database is slow


@dataclass(frozen=True)
class ConnectionAge:
    """When a connection takes no new calls any more, which gRPC moves by up to 10 % either way; how old streams become.

    A stream may be the last call that a connection takes: so whatever is open then has all the time of a stream.
    """

    age_s: float
    stream_age_s: float

    def options(self) -> tuple[tuple[str, int], ...]:
        """The options of a server."""
        grace_s = self.stream_age_s + _STREAM_MARGIN_S
        ages = ("grpc.max_connection_age_ms", self.age_s), ("grpc.max_connection_age_grace_ms", grace_s)
        return tuple((name, round(seconds * 1000)) for name, seconds in ages)


@dataclass(frozen=True)
class Listener:
    """An address to listen on, the setting that names it, and its credentials; None: in the clear."""

    setting: str
    address: str
    credentials: grpc.ServerCredentials | None = None


class RpcServer:
    """Serves what the servicers implement of the contract."""

    def __init__(
        self,
        interceptors: Interceptors,
        servicers: Mapping[str, object],
        *,
        reflection: bool,
        share_port: bool,
        age: ConnectionAge,
    ) -> None:
        """`servicers` by service name (`SyncService`): each public method of one is the RPC of its name. One may have
        a mapping `at_once` of methods that can often be answered without waiting; see `Interceptors.handler`.

        `share_port` lets other processes of this user listen on the same port; else a port that is taken is refused.

        Raises:
            ConfigurationError: a method of the contract has no access option, or a servicer one that is not in it.
        """
        _GRPC_LOG.addFilter(_is_worth_a_line)
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", int(share_port)), *_OPTIONS, *age.options()))
        services = [service.full_name for service in CONTRACT if service.name in servicers]
        self._answers = interceptors.answers
        self._health = Health(services, interceptors.bodies, interceptors.answers)
        handlers = {**_handlers(interceptors, servicers), **self._health.handlers()}
        self._server.add_generic_rpc_handlers((_Methods(handlers),))
        if reflection:
            _add_reflection(self._server, [*services, SERVICE_NAME])

    async def start(self, listeners: Sequence[Listener]) -> list[int]:
        """Listen; not serving yet by its health. The ports.

        Raises:
            ConfigurationError: an address is taken or unusable.
        """
        ports = [self._add(listener) for listener in listeners]
        await self._server.start()
        return ports

    def ready(self) -> None:
        """Health says SERVING from here."""
        self._health.set(health_pb2.HealthCheckResponse.SERVING)

    def retire(self) -> None:
        """Health says NOT_SERVING from here, whatever comes, and no client is waited for that does not read."""
        self._health.retire()
        self._answers.drain()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those under way finish for `grace_s`, then end them."""
        await self._server.stop(grace_s)

    def _add(self, listener: Listener) -> int:
        try:
            if listener.credentials is None:
                return self._server.add_insecure_port(listener.address)
            return self._server.add_secure_port(listener.address, listener.credentials)
        except RuntimeError:
            what = f"cannot listen on {listener.address}; is the port taken?"
            raise ConfigurationError(f"{listener.setting}: {what}") from None


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    # A caller that leaves while a message is on its way is no error; grpc.aio logs one, with a traceback. The status is
    # sent by itself or with the message; that fails for trailing metadata that is wrong too.
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "ExecuteBatchError" or "SendStatus" in str(error)


def _handlers(
    interceptors: Interceptors, servicers: Mapping[str, object]
) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    handlers = {}
    for service in CONTRACT:
        access = policies(service)
        servicer = servicers.get(service.name)
        offered = {name for name in dir(servicer) if name[0].isupper()} if servicer is not None else set()
        if not offered <= access.keys():
            raise ConfigurationError(f"{service.name}: {sorted(offered - access.keys())} are not in the contract")
        for method in service.methods:
            if method.name in offered:
                path = f"/{service.full_name}/{method.name}"
                at_once: Mapping[str, AtOnce] = getattr(servicer, "at_once", {})
                handlers[path] = interceptors.handler(
                    method, access[method.name], getattr(servicer, method.name), at_once.get(method.name)
                )
    return handlers


def _add_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    from grpc_reflection.v1alpha import reflection, reflection_pb2

    # v1 and v1alpha are the same messages under two names; the package registers the older one only.
    v1 = "grpc.reflection.v1.ServerReflection"
    servicer = reflection.aio.ReflectionServicer([*services, v1, reflection.SERVICE_NAME])
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    paths = {f"/{name}/ServerReflectionInfo": handler for name in (v1, reflection.SERVICE_NAME)}
    server.add_generic_rpc_handlers((_Methods(paths),))
