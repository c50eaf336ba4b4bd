"""Tells the time that includes a device's sleep and that nobody can set, so that no poll comes too early."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Protocol


class SyncClock(Protocol):
    """The source of time of a `SmartSync`. It is never asked for the date, which can be set, and is, on phones."""

    def monotonic(self) -> float:
        """Return the seconds since some moment, counted on while the system is suspended if it can tell."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return when at least `seconds` have passed while the device was awake."""
        ...


class BoottimeClock:
    """The system's clock that counts suspended time.

    It is CLOCK_BOOTTIME on Linux and Android, CLOCK_MONOTONIC on macOS and iOS (`time.monotonic` stands still there),
    and `time.monotonic` elsewhere (on Windows it counts suspended time). Where no clock does, a device that was
    suspended polls late by what is left of its interval, never early.
    """

    def __init__(self) -> None:
        name = "CLOCK_MONOTONIC" if sys.platform in ("darwin", "ios") else "CLOCK_BOOTTIME"
        self._id: int | None = getattr(time, name, None)

    def monotonic(self) -> float:
        """Return the seconds since some moment."""
        return time.monotonic() if self._id is None else time.clock_gettime(self._id)

    async def sleep(self, seconds: float) -> None:
        """Wait by the loop's timers, which stand still while the device is suspended."""
        await asyncio.sleep(seconds)


class ElapsedTime:
    """The seconds that have passed by a clock that may go back or stand still: this does neither."""

    def __init__(self, clock: SyncClock) -> None:
        self._clock = clock
        self._last_reading = clock.monotonic()
        self._elapsed = 0.0

    def now(self, at_least: float = 0.0) -> float:
        """Return the seconds since it was made, and `at_least` as many as a finished sleep proves."""
        reading = self._clock.monotonic()
        self._elapsed = max(self._elapsed + max(0.0, reading - self._last_reading), at_least)
        self._last_reading = reading
        return self._elapsed
