"""What the contract says of repeating a call, as a gRPC service config.

Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md
"""

from __future__ import annotations

import json

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from syncbeat.v1 import (
    access_pb2,
    auth_service_pb2,
    directory_service_pb2,
    event_service_pb2,
    ops_service_pb2,
    push_service_pb2,
    sync_service_pb2,
)

SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    service
    for module in (
        sync_service_pb2,
        push_service_pb2,
        directory_service_pb2,
        auth_service_pb2,
        event_service_pb2,
        ops_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)

_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.2s",
    "maxBackoff": "5s",
    "backoffMultiplier": 2,
    # With RESOURCE_EXHAUSTED the server says when to come back (grpc-retry-pushback-ms), and that is obeyed. An answer
    # that is too large is not asked for again, since it has begun; nor is a request sent again that the server finds
    # too large, since it does not fit into the buffer either (`client.py`). CANCELLED is what a
    # server that shuts down answers to calls that reach it before the client knows of it; a call that its own caller
    # cancels is over, whatever stands here.
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
}
MAX_CONNECTIONS = 100
"""To a server: 10,000 streams behind a proxy that takes 100 calls on a connection."""

# Half of the tokens gone means that no call is repeated until successes have brought them back.
_THROTTLING = {"maxTokens": 10, "tokenRatio": 0.1}


def is_repeatable(method: MethodDescriptor) -> bool:
    """Whether a unary call may be sent twice: by its nature, or by the request_id that the client fills in."""
    if method.server_streaming:
        return False
    level = method.GetOptions().idempotency_level
    return level in (MethodOptions.IDEMPOTENT, MethodOptions.NO_SIDE_EFFECTS) or (
        "request_id" in method.input_type.fields_by_name
    )


def service_config(*, shuffle: bool) -> str:
    """The service config (JSON) that repeats what is safe to repeat, and nothing else.

    `shuffle`: a connection goes to any of the addresses that a name has, and not to the first that answers: else all
    clients of a name server that does not turn its answers have the same server.
    """
    names = [
        {"service": service.full_name, "method": method.name}
        for service in SERVICES
        for method in service.methods
        if is_repeatable(method)
    ]
    return json.dumps(
        {
            # What is above the number of calls that a peer takes on a connection (proxies: 100) waits without a word.
            "connectionScaling": {"maxConnectionsPerSubchannel": MAX_CONNECTIONS},
            "loadBalancingConfig": [{"pick_first": {"shuffleAddressList": shuffle}}],
            "methodConfig": [{"name": names, "retryPolicy": _POLICY}],
            "retryThrottling": _THROTTLING,
        }
    )


def public_paths() -> frozenset[str]:
    """The paths of the methods that read no credentials."""
    return frozenset(
        f"/{service.full_name}/{method.name}"
        for service in SERVICES
        for method in service.methods
        if access_pb2.ACCESS_PUBLIC in method.GetOptions().Extensions[access_pb2.access]
    )
