"""Provides the time, from one source, so that tests can pass a fake clock that they move by hand."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """A source of wall time, elapsed time and sleep."""

    def now(self) -> datetime:
        """Return the present moment, time-zone aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return the seconds since an arbitrary start, which never decrease."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


async def sleep_unless(clock: Clock, seconds: float, event: asyncio.Event) -> None:
    """Return after `seconds`, or as soon as the event is set."""
    waits = [asyncio.ensure_future(clock.sleep(seconds)), asyncio.ensure_future(event.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waits:
            one.cancel()


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        """Return the present moment in UTC."""
        return datetime.now(UTC)

    monotonic = staticmethod(time.monotonic)  # itself, since each call asks it five times

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)
