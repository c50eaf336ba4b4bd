"""Drains the RPCs of a process: it answers NOT_SERVING first, then ends streams, then lets calls in flight finish."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from syncbeat_server.app.process import Process
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.sync.hints.cursor_recorder import CursorRecorder

if TYPE_CHECKING:  # gRPC is loaded only by processes that serve RPCs
    from syncbeat_server.rpc.server import RpcServer

_log = logging.getLogger(__name__)

_FLUSH_S = 0.4  # of the second and a half that is left after draining


class Streams(Protocol):
    """Open streams of one kind."""

    def drain(self) -> None:
        """End them, each with what it has reached."""


async def drain_rpc(process: Process, server: RpcServer, streams: Sequence[Streams], cursors: CursorRecorder) -> None:
    """Refuse new calls and let those in flight finish, within the shutdown's budget; then record the last cursors."""
    server.drain()  # the health is NOT_SERVING from here on
    # Streams end first, each with the cursors it reached; then the calls in flight may finish.
    for one in streams:
        one.drain()
    await server.stop(process.shutdown.remaining_s())
    await _flush_cursors(process, cursors)


async def _flush_cursors(process: Process, cursors: CursorRecorder) -> None:
    try:
        if await process.shutdown.wait_for(cursors.flush(), _FLUSH_S):
            return
    except SyncbeatError as error:
        _log.warning("cursors not recorded", extra={"reason": error.reason})
    else:
        _log.warning("cursors not recorded in time")
