"""The baseline: a bare grpc.aio server on uvloop, which parses nothing and returns a constant number of bytes.

Every unary path is answered, so that the baseline receives exactly the requests that the service receives; the path
`STREAM` is a server stream that sends one message and stays open.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

STREAM = "/syncbeat.v1.SyncService/WatchHints"
READY = "echo: serving on"


class _Echo(grpc.GenericRpcHandler):
    def __init__(self, answer: bytes) -> None:
        async def unary(_request: bytes, _context: Any) -> bytes:
            return answer

        async def stream(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
            yield answer
            await asyncio.Event().wait()

        self._unary: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(unary)
        self._stream: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(stream)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler of every path."""
        return self._stream if handler_call_details.method == STREAM else self._unary


async def _serve(answer: bytes) -> None:
    server = grpc.aio.server(
        options=[
            # As in the service, because the defaults refuse many streams that open at once.
            ("grpc.server.max_pending_requests", 50_000),
            ("grpc.server.max_pending_requests_hard_limit", 100_000),
            ("grpc.max_concurrent_streams", 100),
            ("grpc.http2.max_deallocating_streams", 100),
        ]
    )
    server.add_generic_rpc_handlers((_Echo(answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(f"{READY} 127.0.0.1:{port}", flush=True)
    await stopped.wait()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(_serve(b"x" * int(sys.argv[1])))
