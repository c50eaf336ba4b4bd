"""Runs several processes of one program: starts them, restarts those that crash, and ends them together."""

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
_RESTARTED = "a serving process ended and is started again"
_CHILD = Path(__file__).with_name("parent_death_signal.py")


def launch_prefix(death_signal: signal.Signals, uid: int = -1, gid: int = -1) -> list[str]:
    """Return the start of a command line that runs the rest, as user `uid` if given, and ends it when we die.

    To be run from the main thread: the kernel sends the signal when the *thread* ends that started the program
    (PR_SET_PDEATHSIG in prctl(2)), and only the main one lives as long as the process. Other systems than Linux have no
    such signal: there it only runs the rest.
    """
    return [sys.executable, "-I", "-S", str(_CHILD), *map(str, (os.getpid(), int(death_signal), uid, gid))]


async def run_copies(command: Sequence[str], environment: Mapping[str, str], count: int, stop: asyncio.Event) -> None:
    """Keep `count` copies of `command` running until `stop` is set; then SIGTERM each and wait until all are gone.

    Raises:
        ConfigurationError: a first copy ended by itself with an error, as it would again; all have ended then.
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
    restarted = False
    while not stop.is_set():
        child = await asyncio.create_subprocess_exec(*launch_prefix(signal.SIGTERM), *command, env=dict(environment))
        exited = asyncio.ensure_future(child.wait())
        await asyncio.wait((exited, stopping), return_when=asyncio.FIRST_COMPLETED)
        if child.returncode is None:
            child.terminate()
            await exited
        elif stop.is_set():
            return
        elif child.returncode >= 0 and not restarted:
            faults.set()
            stop.set()
        else:
            # A replacement may fail because a file or the database is away for now: that must not end the other copies,
            # which serve by what they read before.
            restarted = True
            _log.error(_RESTARTED, extra={"status": child.returncode})
            await asyncio.wait((stopping,), timeout=_RESTART_S)
