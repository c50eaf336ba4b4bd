"""Several processes of one program: starts them, starts again what crashes, and ends them together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from syncbeat_server.errors import ConfigurationError

_log = logging.getLogger(__name__)

_RESTART_S = 1.0
_STARTED_AGAIN = "a serving process ended and is started again"
_LAUNCH = Path(__file__).with_name("child_process.py")


def launcher(death_signal: signal.Signals, uid: int = -1, gid: int = -1) -> list[str]:
    """The start of a command line that runs the rest, as another user if `uid` names one, and ends it when we die.

    To be started from the main thread: the signal comes when the *thread* ends that started the program
    (PR_SET_PDEATHSIG in prctl(2)), and only the main one lives as long as the process. On Linux; elsewhere it only
    starts the rest.
    """
    return [sys.executable, "-I", "-S", str(_LAUNCH), *map(str, (os.getpid(), int(death_signal), uid, gid))]


async def run_copies(command: Sequence[str], environment: Mapping[str, str], count: int, stop: asyncio.Event) -> None:
    """Keep `count` copies of `command` running until `stop` is set; then SIGTERM each and wait until all are gone.

    Raises:
        ConfigurationError: a copy ended by itself with an error, which it would do again; all have ended then.
    """
    faults = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_keep_running(command, environment, stop, faults))
    if faults.is_set():
        raise ConfigurationError("a serving process refused to go on; its own message is above")


async def _keep_running(
    command: Sequence[str], environment: Mapping[str, str], stop: asyncio.Event, faults: asyncio.Event
) -> None:
    stopping = asyncio.ensure_future(stop.wait())
    again = False
    while not stop.is_set():
        child = await asyncio.create_subprocess_exec(*launcher(signal.SIGTERM), *command, env=dict(environment))
        exited = asyncio.ensure_future(child.wait())
        await asyncio.wait((exited, stopping), return_when=asyncio.FIRST_COMPLETED)
        if child.returncode is None:
            child.terminate()
            await exited
        elif stop.is_set():
            return
        elif child.returncode >= 0 and not again:
            faults.set()
            stop.set()
        else:
            # One that took the place of another may meet a file or a database that is away for now: the others, which
            # serve by what they read before, do not end for that.
            again = True
            _log.error(_STARTED_AGAIN, extra={"status": child.returncode})
            await asyncio.wait((stopping,), timeout=_RESTART_S)
