"""Pacing at work: tells the other processes what was promised, hears what they promised, and measures the load.

Once a second, in one round trip that no caller waits for. While Redis is away each process goes by its own book, which
evens out its own share, and takes the others to be as busy as they were.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import NamedTuple, Protocol

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.sync.policy.load_leveling import HORIZON_S, Book, Load, Pacing, Turns

_log = logging.getLogger(__name__)

_TICK_S = 1.0
_WINDOW_S = 10
_MINUTE_S = 60
_NEAR_MINUTES = 3
_FAR_MINUTES = HORIZON_S // _MINUTE_S - _NEAR_MINUTES
_KEPT_S = HORIZON_S + 2 * _MINUTE_S
_BEARABLE_LAG_S = 0.25
_KEPT_WEIGHT, _LEAST_KEPT, _MOST_KEPT = 0.2, 0.25, 4.0
_USUAL_WEIGHT = 1 / 60
_ABILITY_FADES = 0.999
_LEAST_ABILITY_PER_S = 100.0
_LEAST_SPARE = 0.1
_LEAST_HANDSHAKES_PER_S = 500.0


class Figures(NamedTuple):
    """What this process has seen since its start (`started`, `shed` calls and `streams`) and what it sees now."""

    started: int = 0
    shed: int = 0
    streams: int = 0
    in_flight: int = 0
    waiting: int = 0


class Limits(NamedTuple):
    """What can be borne: requests a second by all processes together (None: not known), calls under way in this one,
    connections of its pool."""

    capacity_per_s: float | None
    in_flight: int
    connections: int


class Observer(Protocol):
    """Told of the stretch and of what the book holds (the metrics hook)."""

    def paced(self, stretch: float, booked_peak: int, booked_mean: float) -> None:
        """The stretch, and what is promised to the fullest of the coming ten seconds and on average."""
        ...


class Pacer:
    """Moves the intervals of hints, for one process among several."""

    def __init__(
        self,
        bus: RedisBus,
        clock: Clock,
        limits: Limits,
        figures: Callable[[], Figures],
        observer: Observer,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._limits = limits
        self._figures = figures
        self._observer = observer
        self._pacing = Pacing(Book(clock.now().timestamp()), draw)
        self._turns, self._returns = Turns(), Turns()
        self._before = Figures()
        self._looked_at = clock.monotonic()
        self._rotation = 0
        self._window = int(clock.now().timestamp()) // _WINDOW_S
        self._uncounted: dict[int, int] = {}
        self._own, self._fleet = 0, 0
        self._times_own = 1.0
        self._over = 0
        self._kept = 1.0
        self._seen: list[tuple[Figures, float]] = []
        self._usual_per_s, self._ability_per_s = 0.0, _LEAST_ABILITY_PER_S
        self._handshakes_per_s = _LEAST_HANDSHAKES_PER_S
        self.overload = 0.0
        """What share of the requests is more than the capacity."""

    def paced(self, interval_s: float, *, background: bool, now: float, floor_s: float = 0.0) -> float:
        """The interval to give to a device that will come by it; its arrival is booked. `now` is in unix seconds."""
        return self._pacing.paced(interval_s, background=background, now=now, floor_s=floor_s)

    def describe(self) -> str:
        """What pacing does now, for people."""
        return self._pacing.describe()

    def turn(self) -> float:
        """In how many seconds one of many who are sent away together, each with a stream, may connect again."""
        return self._turns.next(self._clock.monotonic(), self._handshakes_per_s)

    def return_s(self) -> float:
        """In how many seconds a call that is shed now may come again: all of them fill what others leave free.

        That is of what this process was seen to serve, or of its share of the capacity, whichever is less.
        """
        able, capacity = self._ability_per_s, self._limits.capacity_per_s
        if capacity is not None:
            able = min(able, capacity / self._times_own)
        spare = max(_LEAST_SPARE * able, able - self._usual_per_s)
        return self._returns.next(self._clock.monotonic(), spare)

    async def run(self) -> None:
        """Exchange books and measure, for ever."""
        while True:
            due = self._clock.monotonic() + _TICK_S
            await self._clock.sleep(_TICK_S)
            await self.tick(max(0.0, self._clock.monotonic() - due))

    async def tick(self, lag_s: float = 0.0) -> None:
        """One second is over, and the loop came `lag_s` too late to it."""
        now = self._clock.now().timestamp()
        figures = self._figures()
        self._measure(figures, lag_s)
        self._over += self._pacing.book.pass_to(now)
        await self._exchange(int(now))
        window = int(now) // _WINDOW_S
        if window != self._window:
            self._bear((window - self._window) * _WINDOW_S)
            self._window = window
        self._observer.paced(self._pacing.stretch, *self._pacing.book.coming())

    def _measure(self, figures: Figures, lag_s: float) -> None:
        elapsed = max(1e-3, self._clock.monotonic() - self._looked_at)
        self._looked_at += elapsed
        before, self._before = self._before, figures
        arrived = figures.started - before.started
        window = int(self._clock.now().timestamp()) // _WINDOW_S
        self._uncounted[window] = self._uncounted.get(window, 0) + arrived
        self._own += arrived
        served = max(0, arrived - (figures.shed - before.shed) - (figures.in_flight - before.in_flight)) / elapsed
        self._usual_per_s += min(1.0, _USUAL_WEIGHT * elapsed) * (served - self._usual_per_s)
        self._ability_per_s = max(served, _LEAST_ABILITY_PER_S, _ABILITY_FADES * self._ability_per_s)
        self._handshakes_per_s = max(self._handshakes_per_s, (figures.streams - before.streams) / elapsed)
        self._seen.append((figures, lag_s))

    async def _exchange(self, second: int) -> None:
        book = self._pacing.book
        minute = second // _MINUTE_S
        self._rotation = (self._rotation + 1) % _FAR_MINUTES
        minutes = [*range(minute, minute + _NEAR_MINUTES), minute + _NEAR_MINUTES + self._rotation]
        fresh = book.take_fresh()
        counts: dict[str, dict[int, int]] = {}
        for at, count in fresh.items():
            counts.setdefault(_minute_key(at // _MINUTE_S), {})[at % _MINUTE_S] = count
        uncounted, self._uncounted = self._uncounted, {}
        for window, count in uncounted.items():
            counts.setdefault(_window_key(window), {})[0] = count
        last = second // _WINDOW_S - 1
        try:
            *told, load = await self._bus.tally(counts, [*map(_minute_key, minutes), _window_key(last)], _KEPT_S)
        except DependencyDown:
            # The bookings are told later. Requests are not: a window is of interest for ten seconds only.
            book.put_back(fresh)
            self._fleet = 0
            return
        self._fleet = load.get(0, 0)
        for one, table in zip(minutes, told, strict=True):
            start = one * _MINUTE_S
            book.hear(start, _MINUTE_S, {start + at: count for at, count in table.items()})

    def _bear(self, seconds: float) -> None:
        # What the fleet's windows hold is complete one tick after their end; without Redis the others are guessed.
        if self._fleet and self._own:
            self._times_own = max(1.0, self._fleet / self._own)
        requests = self._fleet or self._own * self._times_own
        if self._over:
            kept = min(_MOST_KEPT, max(_LEAST_KEPT, requests / self._over))
            self._kept += _KEPT_WEIGHT * (kept - self._kept)
        # Means, since a full second among nine empty ones is no load.
        limits, count = self._limits, len(self._seen)
        load = Load(
            in_flight=sum(seen.in_flight for seen, _ in self._seen) / count / limits.in_flight,
            lag=sum(lag_s for _, lag_s in self._seen) / count / _BEARABLE_LAG_S,
            pool=sum(seen.waiting for seen, _ in self._seen) / count / limits.connections,
        )
        capacity = limits.capacity_per_s
        if capacity is not None:
            promised = self._pacing.book.forecast() * self._kept
            load = load._replace(rate=requests / seconds / capacity, promised=promised / capacity)
        self._pacing.bear(load)
        self.overload = max(0.0, 1.0 - 1.0 / load.rate) if load.rate > 1.0 else 0.0
        self._seen.clear()
        self._own, self._over = 0, 0


def _minute_key(minute: int) -> str:
    return f"booked:{minute}"


def _window_key(window: int) -> str:
    return f"requests:{window}"
