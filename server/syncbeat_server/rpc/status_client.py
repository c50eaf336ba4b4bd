"""Asks a running server for its status and for the report on its objectives over gRPC, as an operator would."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_server.errors import AccessDenied, DependencyDown
from syncbeat_server.rpc.deployment import Deployment, open_channel

_SERVICE = "/syncbeat.v1.OpsService"
_REFUSALS = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_MAX_BYTES = 16 << 20
_LONGEST_DETAIL = 300

AskStatus = Callable[[str], Awaitable[dict[str, Any]]]
"""Returns the status as JSON has it, with the queue of an app."""


@asynccontextmanager
async def asking_status(target: Deployment) -> AsyncIterator[AskStatus]:
    """Yield what asks a server, over one connection for the block.

    What it asks raises DependencyDown if there is no answer, and AccessDenied if the token is refused.
    """
    options = (("grpc.max_receive_message_length", _MAX_BYTES),)
    async with open_channel(target, options) as channel:

        async def ask(app_id: str) -> dict[str, Any]:
            request = pb.GetStatusRequest(app_id=app_id)
            return await _ask(target, channel, "GetStatus", request, pb.GetStatusResponse)

        yield ask


async def ask_slo_report(target: Deployment, app_id: str, window_s: float | None) -> dict[str, Any]:
    """Return the report on a deployment's objectives as JSON has it; without a window over the server's own.

    Raises:
        AccessDenied: the token is refused.
        DependencyDown: there is no answer.
    """
    window = None if window_s is None else Duration(seconds=round(window_s))
    async with open_channel(target) as channel:
        request = pb.GetSloReportRequest(app_id=app_id, window=window)
        return await _ask(target, channel, "GetSloReport", request, pb.GetSloReportResponse)


async def _ask(
    target: Deployment, channel: grpc.aio.Channel, method: str, request: Message, response: type[Message]
) -> dict[str, Any]:
    call: Any = channel.unary_unary(
        f"{_SERVICE}/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=response.FromString,
    )
    metadata = (("authorization", f"Bearer {target.token}"),)
    try:
        answer = await call(request, metadata=metadata, timeout=target.timeout_s)
    except grpc.aio.AioRpcError as error:
        detail = (error.details() or "")[:_LONGEST_DETAIL]
        fault = f"{target.address}: {error.code().name}: {detail}"
        raise (AccessDenied if error.code() in _REFUSALS else DependencyDown)(fault) from None
    return MessageToDict(answer, always_print_fields_with_no_presence=True)
