"""Opens connections to a running deployment, as its operators and its own tools do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from syncbeat import ClientRule, SyncbeatClient
from syncbeat.errors import ErrorDetails, explain
from syncbeat.v1.error_reason_pb2 import ErrorReason

CallError = grpc.aio.AioRpcError
"""The error that a call of a client raises when it fails."""

_LONGEST_MESSAGE = 300
_OUR_FAULT = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


@dataclass(frozen=True)
class Deployment:
    """A deployment: its address, the token to show, and the authorities (PEM) to trust; None: the system's."""

    address: str
    token: str = field(repr=False)
    tls: bool
    authorities: bytes | None = None
    timeout_s: float = 10.0


@dataclass(frozen=True)
class CallFailure:
    """A failed call: its status and the server's reason by name, and whether the fault is the server's (ADR 171)."""

    code: str
    reason: str
    message: str
    is_server_fault: bool
    retry_after_s: float | None = None

    def __str__(self) -> str:
        reason = f" / {self.reason}" if self.reason else ""
        return f"{self.code}{reason}: {self.message}"


def open_channel(deployment: Deployment, options: tuple[tuple[str, int], ...] = ()) -> grpc.aio.Channel:
    """Return a channel to a deployment, with TLS if it asks for that."""
    if not deployment.tls:
        return grpc.aio.insecure_channel(deployment.address, options=options)
    credentials = grpc.ssl_channel_credentials(deployment.authorities)
    return grpc.aio.secure_channel(deployment.address, credentials, options=options)


def open_client(
    deployment: Deployment, token: str | None = None, *, app_id: str = "", repeats: bool = True
) -> SyncbeatClient:
    """Return a client of a deployment, with its own token or another.

    Without `repeats` no call is made twice, so that each failure shows.
    """
    tls: bool | grpc.ChannelCredentials = deployment.tls
    if deployment.tls and deployment.authorities is not None:
        tls = grpc.ssl_channel_credentials(deployment.authorities)
    options: Mapping[str, int | str] = ClientRule().channel_options
    rule = ClientRule() if repeats else ClientRule(channel_options={**options, "grpc.enable_retries": 0})
    return SyncbeatClient(
        deployment.address,
        token=deployment.token if token is None else token,
        tls=tls,
        app_id=app_id,
        timeout_s=deployment.timeout_s,
        rule=rule,
    )


def describe_failure(error: grpc.RpcError) -> CallFailure:
    """Return what a call failed with, in words that can be printed; the message is bounded."""
    details: ErrorDetails = explain(error)
    name = ErrorReason.Name(details.reason).removeprefix("ERROR_REASON_")
    return CallFailure(
        details.code.name,
        "" if name == "UNSPECIFIED" else name,
        details.message[:_LONGEST_MESSAGE],
        details.code in _OUR_FAULT,
        details.retry_after_s,
    )
