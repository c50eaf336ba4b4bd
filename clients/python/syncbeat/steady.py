"""Time that no sleep of the device stops and nobody sets: by it, a device never asks earlier than it was told."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Protocol


class SyncClock(Protocol):
    """Where a `SmartSync` takes the time from. Nobody asks it for the date: that can be set, and is, on phones."""

    def monotonic(self) -> float:
        """Seconds since some moment; where the system can tell, they go on while it is suspended."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return when at least `seconds` have passed while the device was awake."""
        ...


class SystemClock:
    """The system's clock that counts suspended time: CLOCK_BOOTTIME on Linux and Android, CLOCK_MONOTONIC on macOS
    and iOS (`time.monotonic` stands still there), `time.monotonic` elsewhere (on Windows it counts it).

    Where none does, a device that was suspended asks late by what is left of its interval, never early.
    """

    def __init__(self) -> None:
        name = "CLOCK_MONOTONIC" if sys.platform in ("darwin", "ios") else "CLOCK_BOOTTIME"
        self._id: int | None = getattr(time, name, None)

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() if self._id is None else time.clock_gettime(self._id)

    async def sleep(self, seconds: float) -> None:
        """Wait by the loop's timers, which stand still while the device is suspended."""
        await asyncio.sleep(seconds)


class Elapsed:
    """Seconds that have passed, by a clock that may go back or stand still: this does neither."""

    def __init__(self, clock: SyncClock) -> None:
        self._clock = clock
        self._seen = clock.monotonic()
        self._now = 0.0

    def now(self, at_least: float = 0.0) -> float:
        """Seconds since it was made: `at_least` so many, where a sleep that has ended proves it."""
        seen = self._clock.monotonic()
        self._now = max(self._now + max(0.0, seen - self._seen), at_least)
        self._seen = seen
        return self._now
