"""Servers and workers that die at a statement of theirs, while an event is taken in or retried."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from syncbeat_devtools.demo.processes import READY_WORD
from syncbeat_devtools.demo.stage import Stage

_READY_S = 60.0


@dataclass(frozen=True)
class Death:
    """The statement of a method or task at which a process dies: before PostgreSQL has it, or after its answer."""

    origin: str
    nth: int
    when: str = "before"


@dataclass(frozen=True)
class Doomed:
    """A process that dies at a statement, once it comes to it."""

    child: asyncio.subprocess.Process
    address: str

    @property
    def is_dead(self) -> bool:
        """Tell if it came to that statement and died."""
        return self.child.returncode == -signal.SIGKILL

    async def died(self, within_s: float) -> bool:
        """Tell if it dies within so many seconds."""
        try:
            await asyncio.wait_for(self.child.wait(), within_s)
        except TimeoutError:
            return False
        assert self.is_dead, f"it ended with {self.child.returncode}"
        return True


@asynccontextmanager
async def doomed(stage: Stage, death: Death, command: str = "serve") -> AsyncIterator[Doomed]:
    """Run a server or a worker that dies at a statement; if it has not by the end of the block it is ended."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SYNCBEAT_")}
    with (stage.folder / f"doomed-{command}.log").open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.e2e.dying_at_statement"),
            *(death.origin, str(death.nth), death.when, command),
            env={**own, **stage.settings, "SYNCBEAT_ROLE": "rpc", "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        yield Doomed(child, await _address(child) if command == "serve" else "")
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def _address(child: asyncio.subprocess.Process) -> str:
    assert child.stdout is not None
    async with asyncio.timeout(_READY_S):
        while line := (await child.stdout.readline()).decode():
            _, found, address = line.strip().partition(READY_WORD)
            if found:
                return address
    raise AssertionError("it did not start")
