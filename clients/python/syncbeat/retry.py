"""Retries the calls that the contract says are safe to repeat, by a gRPC service config.

Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md
"""

from __future__ import annotations

import json

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from syncbeat.v1 import (
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
    # With RESOURCE_EXHAUSTED the server says when to retry (grpc-retry-pushback-ms), and that is obeyed. A call whose
    # response is too large is not retried, since the response has begun; nor one whose request is too large for the
    # server, since it does not fit into the retry buffer either (`client.py`). A server that shuts down answers
    # CANCELLED to calls that reach it before the client knows; a call that its own caller cancels is never retried.
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
}
MAX_CONNECTIONS = 100
"""The connections to one server: 10,000 streams behind a proxy that takes 100 calls on each."""

# While half of the tokens are used up no call is retried; successes bring them back.
_THROTTLING = {"maxTokens": 10, "tokenRatio": 0.1}


_ADDRESS_LISTS = ("ipv4:", "ipv6:")


def is_repeatable(method: MethodDescriptor) -> bool:
    """Tell if a unary call may be sent twice: by its nature, or by the request_id that the client fills in."""
    if method.server_streaming:
        return False
    level = method.GetOptions().idempotency_level
    return level in (MethodOptions.IDEMPOTENT, MethodOptions.NO_SIDE_EFFECTS) or (
        "request_id" in method.input_type.fields_by_name
    )


def service_config(*, shuffle: bool) -> str:
    """Return the service config (JSON) that retries the calls that are safe to repeat.

    With `shuffle` a connection goes to any of a name's addresses, not to the first that answers: else all clients of a
    name server that does not rotate its answers would have the same server.
    """
    names = [
        {"service": service.full_name, "method": method.name}
        for service in SERVICES
        for method in service.methods
        if is_repeatable(method)
    ]
    return json.dumps(
        {
            # A call above the number that a peer takes on a connection (proxies: 100) would wait unnoticed.
            "connectionScaling": {"maxConnectionsPerSubchannel": MAX_CONNECTIONS},
            "loadBalancingConfig": [{"pick_first": {"shuffleAddressList": shuffle}}],
            "methodConfig": [{"name": names, "retryPolicy": _POLICY}],
            "retryThrottling": _THROTTLING,
        }
    )


def shuffles_addresses(target: str) -> bool:
    """Tell if the addresses of a target come in no order: those of a list are meant to be tried in theirs."""
    return not target.startswith(_ADDRESS_LISTS)


PUBLIC_PATHS = frozenset(
    {
        "/syncbeat.v1.AuthService/LinkIdentity",
        "/syncbeat.v1.AuthService/RefreshSession",
        "/syncbeat.v1.PushService/AcknowledgeDelivery",
    }
)
"""The paths of the methods that take no credentials."""
