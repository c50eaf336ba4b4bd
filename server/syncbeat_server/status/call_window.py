"""Keeps readings of a process's counters over the last minutes, so that rates are those of now and not of its life.

Calls are counted where they always were, for the metrics; here their counts are read every few seconds, in the
background. So a call costs nothing more, and the readings are bounded: one a `every_s`, as far back as the window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from syncbeat_server.clock import Clock
from syncbeat_server.status.policy.method_figures import Counts

_LEAST_SPAN_S = 1e-3


@dataclass(frozen=True)
class WindowRule:
    """The span that figures are about, and the seconds between two readings."""

    window_s: float = 300.0
    every_s: float = 10.0


class Reading(NamedTuple):
    """The counters at one moment: finished calls by method, and messages sent by streams."""

    at_s: float
    calls: Mapping[str, Counts]
    signals: int


class CallWindow:
    """Readings of one process's counters, the oldest of which is as old as the window at most."""

    def __init__(
        self,
        clock: Clock,
        calls: Callable[[], Mapping[str, Counts]],
        signals: Callable[[], int],
        rule: WindowRule,
    ) -> None:
        self._clock = clock
        self._calls = calls
        self._signals = signals
        self._rule = rule
        self._readings: deque[Reading] = deque([self._read()], maxlen=round(rule.window_s / rule.every_s) + 1)

    def ends(self) -> tuple[Reading, Reading, float]:
        """Return the oldest reading, the counters now, and the seconds between the two."""
        now = self._read()
        while len(self._readings) > 1 and now.at_s - self._readings[0].at_s > self._rule.window_s:
            self._readings.popleft()
        first = self._readings[0]
        return first, now, max(_LEAST_SPAN_S, now.at_s - first.at_s)

    async def run(self) -> None:
        """Read the counters every few seconds, for ever."""
        while True:
            await self._clock.sleep(self._rule.every_s)
            self._readings.append(self._read())

    def _read(self) -> Reading:
        return Reading(self._clock.monotonic(), self._calls(), self._signals())
