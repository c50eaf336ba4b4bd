"""Asks a running server for its status over gRPC, as an operator would."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_server.errors import AccessDenied, DependencyDown
from syncbeat_server.rpc.deployment import Deployment, open_channel

_METHOD = "/syncbeat.v1.OpsService/GetStatus"
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
        method: Any = channel.unary_unary(
            _METHOD,
            request_serializer=pb.GetStatusRequest.SerializeToString,
            response_deserializer=pb.GetStatusResponse.FromString,
        )
        metadata = (("authorization", f"Bearer {target.token}"),)

        async def ask(app_id: str) -> dict[str, Any]:
            try:
                answer = await method(pb.GetStatusRequest(app_id=app_id), metadata=metadata, timeout=target.timeout_s)
            except grpc.aio.AioRpcError as error:
                detail = (error.details() or "")[:_LONGEST_DETAIL]
                fault = f"{target.address}: {error.code().name}: {detail}"
                raise (AccessDenied if error.code() in _REFUSALS else DependencyDown)(fault) from None
            return MessageToDict(answer, always_print_fields_with_no_presence=True)

        yield ask
