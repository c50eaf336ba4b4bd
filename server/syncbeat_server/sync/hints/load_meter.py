"""Measures the load of this process: requests served, calls in flight, lag of the event loop, waits for the pool."""

from __future__ import annotations

from typing import NamedTuple

from syncbeat_server.clock import Clock
from syncbeat_server.sync.policy.load_leveling import Load

LOAD_WINDOW_S = 10
_BEARABLE_LAG_S = 0.25
_USUAL_WEIGHT = 1 / 60  # a second of the mean rate, which so follows the last minute
_ABLE_DECAY = 0.999  # a second: the best rate counts for half after twelve minutes
_MIN_ABLE_PER_S = 100.0
_MIN_HANDSHAKES_PER_S = 500.0


class LoadFigures(NamedTuple):
    """Counts of this process since its start (`started`, `shed` calls and `streams`), and gauges of this moment."""

    started: int = 0
    shed: int = 0
    streams: int = 0
    in_flight: int = 0
    waiting: int = 0


class LoadLimits(NamedTuple):
    """Limits of what can be borne.

    They are requests a second of all processes together (None: not known), calls in flight in this process, and
    connections of its pool. Requests of all processes are counted, and hints adjusted to them, by windows of
    `window_s`.
    """

    capacity_per_s: float | None
    in_flight: int
    connections: int
    window_s: int = LOAD_WINDOW_S


class LoadMeter:
    """Samples the figures of a process once a second, and averages them over ten.

    `usual_per_s` is the mean rate of calls served in the last minute, `able_per_s` the highest, which decays, and
    `handshakes_per_s` the highest rate of streams opened.
    """

    def __init__(self, clock: Clock, limits: LoadLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._before = LoadFigures()
        self._sampled_at = clock.monotonic()
        self._samples: list[tuple[LoadFigures, float]] = []
        self.usual_per_s, self.able_per_s = 0.0, _MIN_ABLE_PER_S
        self.handshakes_per_s = _MIN_HANDSHAKES_PER_S

    def sample(self, figures: LoadFigures, lag_s: float) -> int:
        """Take one sample, which the event loop came `lag_s` too late to; return the requests since the last."""
        elapsed = max(1e-3, self._clock.monotonic() - self._sampled_at)
        self._sampled_at += elapsed
        before, self._before = self._before, figures
        arrived = figures.started - before.started
        served = max(0, arrived - (figures.shed - before.shed) - (figures.in_flight - before.in_flight)) / elapsed
        self.usual_per_s += min(1.0, _USUAL_WEIGHT * elapsed) * (served - self.usual_per_s)
        self.able_per_s = max(served, _MIN_ABLE_PER_S, _ABLE_DECAY * self.able_per_s)
        self.handshakes_per_s = max(self.handshakes_per_s, (figures.streams - before.streams) / elapsed)
        self._samples.append((figures, lag_s))
        return arrived

    def take_load(self, requests_per_s: float, promised_per_s: float) -> Load:
        """Return the mean load since the last call, each figure over its limit.

        The rates are those of all processes. Means, since a full second among nine empty ones is no load.
        """
        limits, count = self._limits, len(self._samples)
        load = Load(
            in_flight=sum(figures.in_flight for figures, _ in self._samples) / count / limits.in_flight,
            lag=sum(lag_s for _, lag_s in self._samples) / count / _BEARABLE_LAG_S,
            pool=sum(figures.waiting for figures, _ in self._samples) / count / limits.connections,
        )
        self._samples.clear()
        capacity = limits.capacity_per_s
        return (
            load
            if capacity is None
            else load._replace(rate=requests_per_s / capacity, promised=promised_per_s / capacity)
        )
