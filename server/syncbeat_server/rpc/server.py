"""Serves the methods of the contract, health and reflection over gRPC, and drains."""

from __future__ import annotations

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
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.rpc.connection_limits import OPTIONS, ConnectionAge, ServerRule
from syncbeat_server.rpc.fastpath.received_metadata import received_metadata
from syncbeat_server.rpc.grpc_logs import silence_departed_callers
from syncbeat_server.rpc.pipeline.access import access_policies
from syncbeat_server.rpc.pipeline.call_context import TrySync
from syncbeat_server.rpc.pipeline.handler_pipeline import HandlerPipeline
from syncbeat_server.rpc.servicers.health import HealthServicer

CONTRACT: tuple[ServiceDescriptor, ...] = (
    sync_service_pb2.DESCRIPTOR.services_by_name["SyncService"],
    push_service_pb2.DESCRIPTOR.services_by_name["PushService"],
    directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"],
    auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
    event_service_pb2.DESCRIPTOR.services_by_name["EventService"],
    ops_service_pb2.DESCRIPTOR.services_by_name["OpsService"],
)


class _MethodTable(grpc.GenericRpcHandler):
    """The handlers by full method name; grpc-core answers UNIMPLEMENTED for others."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of one call, and keep the metadata that gRPC has decoded for it."""
        received_metadata.set(handler_call_details.invocation_metadata)
        return self._handlers.get(handler_call_details.method)


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
        silence_departed_callers()
        shared = ("grpc.so_reuseport", int(share_port))
        self._server = grpc.aio.server(options=(shared, *OPTIONS, *rule.options(), *age.options()))
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
