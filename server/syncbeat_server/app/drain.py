"""Drains the RPCs of a process: it answers NOT_SERVING first, then ends streams, then lets calls in flight finish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.shutdown_budget import ShutdownBudget

_log = logging.getLogger(__name__)

_FLUSH_S = 0.4  # for each of two kinds of rows, of the second and a half that is left after draining

Flush = Callable[[], Coroutine[Any, Any, None]]
"""Writes rows that are still in memory."""


class Streams(Protocol):
    """Open streams of one kind."""

    def drain(self) -> None:
        """End them, each with what it has reached."""


class Server(Protocol):
    """The RPC server of a process. Not imported: gRPC is loaded only by processes that serve RPCs."""

    def drain(self) -> None:
        """Report NOT_SERVING for good."""

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish for `grace_s` seconds, then cancel them."""


async def drain_rpc(
    shutdown: ShutdownBudget, server: Server, streams: Sequence[Streams], flushes: Sequence[tuple[str, Flush]]
) -> None:
    """Refuse new calls and let those in flight finish, within the shutdown's budget; then write what `flushes` name."""
    server.drain()  # before any client comes back from a stream that ended
    for one in streams:
        one.drain()
    await server.stop(shutdown.remaining_s())
    for rows, flush in flushes:
        await _flush(shutdown, rows, flush)


async def _flush(shutdown: ShutdownBudget, rows: str, flush: Flush) -> None:
    try:
        if await shutdown.wait_for(flush(), _FLUSH_S):
            return
    except SyncbeatError as error:
        _log.warning("%s not recorded", rows, extra={"reason": error.reason})
    else:
        _log.warning("%s not recorded in time", rows)
