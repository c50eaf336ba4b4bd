"""The baseline of stream figures: a bare grpc.aio server on uvloop with one slot a stream, which wakes them in chunks.

A publish puts its request into the slot of every stream, which sends it; other unary calls are answered with a
constant. A stream sends `first_bytes` when it opens, and again every 30 s while there is nothing else.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from bench.echo_server import STREAM

PUBLISH = "/syncbeat.v1.SyncService/PublishChanges"
READY = "slots: serving on"
_CHUNK = 100
_HEARTBEAT_S = 30.0


class _Slots(grpc.GenericRpcHandler):
    def __init__(self, first: bytes) -> None:
        self._first = first
        self._slot = b""
        self._waiting: list[asyncio.Future[bool]] = []
        self._stream: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(self._watch)
        self._publish: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(self._fan_out)
        self._unary: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(self._answer)

    async def _watch(self, _request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield self._first
        while True:
            waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            timer = asyncio.get_running_loop().call_later(_HEARTBEAT_S, _release, waiter)
            await waiter
            timer.cancel()
            yield self._slot if waiter.result() else self._first

    async def _fan_out(self, request: bytes, _context: Any) -> bytes:
        self._slot = request
        woken, self._waiting = self._waiting, []
        self._wake(woken)
        return b""

    def _wake(self, woken: list[asyncio.Future[bool]]) -> None:
        for waiter in woken[:_CHUNK]:
            if not waiter.done():
                waiter.set_result(True)
        if len(woken) > _CHUNK:
            asyncio.get_running_loop().call_soon(self._wake, woken[_CHUNK:])

    async def _answer(self, _request: bytes, _context: Any) -> bytes:
        return self._first

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of every path."""
        handlers = {STREAM: self._stream, PUBLISH: self._publish}
        return handlers.get(str(handler_call_details.method), self._unary)


def _release(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)


async def _serve(first_bytes: int) -> None:
    server = grpc.aio.server(
        options=[
            # As in the service, because the defaults refuse many streams that open at once.
            ("grpc.server.max_pending_requests", 50_000),
            ("grpc.server.max_pending_requests_hard_limit", 100_000),
            ("grpc.max_concurrent_streams", 100),
        ]
    )
    server.add_generic_rpc_handlers((_Slots(b"x" * first_bytes),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.freeze()
    gc.set_threshold(5_000, 20, 1_000)  # as the service
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(f"{READY} 127.0.0.1:{port}", flush=True)
    await stopped.wait()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
