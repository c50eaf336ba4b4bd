"""The metadata kept from the choice of a handler is that of the call."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from syncbeat_server.rpc.fastpath.received_metadata import metadata_of, received_metadata

pytestmark = pytest.mark.rpc


class Echo(grpc.GenericRpcHandler):
    """Notes the metadata of each call in both ways."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[tuple[str, str | bytes]], list[tuple[str, str | bytes]]]] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        received_metadata.set(handler_call_details.invocation_metadata)
        return grpc.unary_unary_rpc_method_handler(self._noted)

    async def _noted(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        fast = [(key, value) for key, value in metadata_of(context)]
        self.seen.append((fast, [(key, value) for key, value in context.invocation_metadata() or ()]))
        return request


async def test_received_metadata_is_the_invocation_metadata_of_the_call() -> None:
    server, echo = grpc.aio.server(), Echo()
    server.add_generic_rpc_handlers((echo,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    named: list[list[tuple[str, str | bytes]]] = [[("x-request-id", f"call {number}")] for number in range(20)]
    sent: list[list[tuple[str, str | bytes]]] = [
        [],
        [("authorization", "Bearer a"), ("authorization", "b")],
        [("a-bin", b"\xff\x00"), ("a", "1"), ("a-bin", b"")],
        *named,
    ]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method: Any = channel.unary_unary("/any/Method")
            await asyncio.gather(*(method(b"", metadata=tuple(metadata)) for metadata in sent))
    finally:
        await server.stop(None)
    assert len(echo.seen) == len(sent)
    for fast, plain in echo.seen:
        assert fast == plain
    own = sorted(value for fast, _ in echo.seen for key, value in fast if key == "x-request-id")
    assert own == sorted(f"call {number}" for number in range(20)), "each call sees its own"
