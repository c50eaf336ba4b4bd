"""Paces the hints of all processes together: shares the bookings of arrivals through Redis, and measures the load.

Bookings are exchanged once a second, in one round trip that no caller waits for. While Redis is away each process goes
by its own bookings, which level its own share, and assumes that the others are as busy as they were.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.sync.hints.load_meter import LoadFigures, LoadLimits, LoadMeter
from syncbeat_server.sync.hints.reconnect_spacing import ReconnectSpacer
from syncbeat_server.sync.policy.arrival_book import HORIZON_S, ArrivalBook
from syncbeat_server.sync.policy.load_leveling import LoadLeveler

_TICK_S = 1.0
_MINUTE_S = 60
_NEAR_MINUTES = 3  # read at every tick; the others of the hour one at a time
_FAR_MINUTES = HORIZON_S // _MINUTE_S - _NEAR_MINUTES
_COUNTS_KEPT_S = HORIZON_S + 2 * _MINUTE_S
_KEPT_WEIGHT, _MIN_KEPT, _MAX_KEPT = 0.2, 0.25, 4.0  # of requests over promised arrivals
_MIN_SPARE = 0.1  # of what can be served, even where all of it is in use


class PacingMetrics(Protocol):
    """Receives the figures of pacing."""

    def paced(self, stretch: float, booked_peak: int, booked_mean: float) -> None:
        """Record the stretch, and the arrivals booked for the fullest of the coming ten seconds and on average."""
        ...


class LoadPacer:
    """Moves the intervals of hints, for one process among several."""

    def __init__(
        self,
        bus: RedisBus,
        clock: Clock,
        limits: LoadLimits,
        figures: Callable[[], LoadFigures],
        metrics: PacingMetrics,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._capacity_per_s = limits.capacity_per_s
        self._figures = figures
        self._metrics = metrics
        self._meter = LoadMeter(clock, limits)
        self._leveler = LoadLeveler(ArrivalBook(clock.now().timestamp()), draw)
        self._reconnects, self._retries = ReconnectSpacer(), ReconnectSpacer()
        self._rotation = 0
        self._window_s = limits.window_s
        self._window = int(clock.now().timestamp()) // self._window_s
        self._unshared_requests: dict[int, int] = {}
        self._own_requests, self._all_requests = 0, 0
        self._all_over_own = 1.0
        self._promised_arrivals = 0
        self._kept = 1.0
        self.overload = 0.0
        """The share of requests beyond the capacity, from 0 to 1."""

    def pace(self, interval_s: float, *, background: bool, now: float, floor_s: float = 0.0) -> float:
        """Return the interval to give to a device, whose arrival is booked. `now` is in unix seconds."""
        return self._leveler.pace(interval_s, background=background, now=now, floor_s=floor_s)

    def describe(self) -> str:
        """Describe the current pacing for people."""
        return self._leveler.describe()

    def reconnect_delay_s(self) -> float:
        """Return the seconds after which one of many streams that are ended together may connect again."""
        return self._reconnects.next_delay_s(self._clock.monotonic(), self._meter.handshakes_per_s)

    def retry_delay_s(self) -> float:
        """Return the seconds after which a call that is shed now may be repeated: repeats fill the spare capacity.

        Spare is measured against the highest rate that this process served, or its share of the capacity if less.
        """
        able = self._meter.able_per_s
        if self._capacity_per_s is not None:
            able = min(able, self._capacity_per_s / self._all_over_own)
        spare = max(_MIN_SPARE * able, able - self._meter.usual_per_s)
        return self._retries.next_delay_s(self._clock.monotonic(), spare)

    async def run(self) -> None:
        """Exchange bookings and measure the load, for ever."""
        while True:
            due = self._clock.monotonic() + _TICK_S
            await self._clock.sleep(_TICK_S)
            await self.tick(max(0.0, self._clock.monotonic() - due))

    async def tick(self, lag_s: float = 0.0) -> None:
        """Account for one second that passed; the event loop came `lag_s` too late to it."""
        now = self._clock.now().timestamp()
        arrived = self._meter.sample(self._figures(), lag_s)
        window = int(now) // self._window_s
        self._unshared_requests[window] = self._unshared_requests.get(window, 0) + arrived
        self._own_requests += arrived
        self._promised_arrivals += self._leveler.book.advance_to(now)
        await self._exchange(int(now))
        if window != self._window:
            self._update_load((window - self._window) * self._window_s)
            self._window = window
        self._metrics.paced(self._leveler.stretch, *self._leveler.book.coming_seconds())

    async def _exchange(self, second: int) -> None:
        book = self._leveler.book
        minute = second // _MINUTE_S
        self._rotation = (self._rotation + 1) % _FAR_MINUTES
        minutes = [*range(minute, minute + _NEAR_MINUTES), minute + _NEAR_MINUTES + self._rotation]
        unshared = book.take_unshared()
        counts: dict[str, dict[int, int]] = {}
        for at, count in unshared.items():
            counts.setdefault(_minute_key(at // _MINUTE_S), {})[at % _MINUTE_S] = count
        requests, self._unshared_requests = self._unshared_requests, {}
        for window, count in requests.items():
            counts.setdefault(_window_key(window), {})[0] = count
        last = second // self._window_s - 1
        try:
            *totals, window_totals = await self._bus.tally(
                counts, [*map(_minute_key, minutes), _window_key(last)], _COUNTS_KEPT_S
            )
        except DependencyDown:
            # Bookings are shared later. Requests are not: a window matters for ten seconds only.
            book.return_unshared(unshared)
            self._all_requests = 0
            return
        self._all_requests = window_totals.get(0, 0)
        for one, total in zip(minutes, totals, strict=True):
            start = one * _MINUTE_S
            book.set_totals(start, _MINUTE_S, {start + at: count for at, count in total.items()})

    def _update_load(self, seconds: float) -> None:
        # The windows of all processes are complete one tick after their end; without Redis the others are estimated.
        if self._all_requests and self._own_requests:
            self._all_over_own = max(1.0, self._all_requests / self._own_requests)
        requests = self._all_requests or self._own_requests * self._all_over_own
        if self._promised_arrivals:
            kept = min(_MAX_KEPT, max(_MIN_KEPT, requests / self._promised_arrivals))
            self._kept += _KEPT_WEIGHT * (kept - self._kept)
        load = self._meter.take_load(requests / seconds, self._leveler.book.peak_per_s() * self._kept)
        self._leveler.adjust(load)
        self.overload = max(0.0, 1.0 - 1.0 / load.rate) if load.rate > 1.0 else 0.0
        self._own_requests, self._promised_arrivals = 0, 0


def _minute_key(minute: int) -> str:
    return f"booked:{minute}"


def _window_key(window: int) -> str:
    return f"requests:{window}"
