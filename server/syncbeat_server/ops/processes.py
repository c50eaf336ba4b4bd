"""Several processes of one program: starts them, starts again what dies, and ends them together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

_log = logging.getLogger(__name__)

_RESTART_S = 1.0


async def run_copies(command: Sequence[str], environment: Mapping[str, str], count: int, stop: asyncio.Event) -> None:
    """Keep `count` copies of `command` running until `stop` is set; then SIGTERM each and wait until all are gone."""
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_keep_running(command, environment, stop))


async def _keep_running(command: Sequence[str], environment: Mapping[str, str], stop: asyncio.Event) -> None:
    stopping = asyncio.ensure_future(stop.wait())
    while not stop.is_set():
        child = await asyncio.create_subprocess_exec(*command, env=dict(environment))
        exited = asyncio.ensure_future(child.wait())
        await asyncio.wait((exited, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            _log.error("a serving process died and is started again", extra={"status": child.returncode})
            await asyncio.wait((stopping,), timeout=_RESTART_S)
        elif child.returncode is None:
            child.terminate()
            await exited
