"""Plays the day of a device that only polls."""

from __future__ import annotations

import math

from syncbeat_devtools.simulate.engine.tally import AWAKE_S, EMPTY_POLL_BYTES, FETCH_BYTES, Tally
from syncbeat_devtools.simulate.fleet.devices import DAY, Device, Segment
from syncbeat_devtools.simulate.policies.schedules import Schedule


class TrueRates:
    """The true rates of a device's feed, read in the order of time."""

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self._segments = segments
        self._index = 0

    @property
    def per_s(self) -> float:
        """Return the changes per second at the end of the last interval asked for."""
        return self._segments[self._index].per_s if self._segments else 0.0

    def stale_s(self, start: float, end: float) -> float:
        """Return the stale seconds expected of an interval: the integral of rate(t) * (end - t), t within the day."""
        total, segments = 0.0, self._segments
        for index in range(self._index, len(segments)):
            segment = segments[index]
            low = max(segment.start, start)
            high = min(segment.end, end)
            if high > low:
                total += segment.per_s * ((end - low) ** 2 - (end - high) ** 2) / 2.0
            self._index = index
            if segment.end > end:
                break
        return total


def play_poll_day(device: Device, schedule: Schedule, tally: Tally, phase: float) -> None:
    """Let the device poll for a day by this schedule; its first poll comes after the fraction `phase` of an interval.

    The server learns of each change at its commit. Polls after midnight are not counted, but their changes are.
    """
    changes, count, seen = device.changes, len(device.changes), 0
    rates = TrueRates(device.segments)
    for before_s in device.history:
        schedule.on_change(before_s)
    start, at, awake_at = 0.0, phase * schedule.interval(0.0, news=False), -math.inf
    tally.devices += 1
    tally.expected += sum((part.end - part.start) * part.per_s for part in device.segments)
    while True:
        before = seen
        while seen < count and changes[seen] <= at:
            schedule.on_change(changes[seen])
            tally.delays.append(at - changes[seen])
            seen += 1
        tally.stale_s += rates.stale_s(start, at)
        if at >= DAY:
            return
        news = seen > before
        tally.polls += 1
        tally.request(at)
        tally.traffic_bytes += FETCH_BYTES if news else EMPTY_POLL_BYTES
        if at - awake_at > AWAKE_S:
            tally.wakeups += 1
        awake_at = at
        wait = schedule.interval(at, news=news)
        expectation = schedule.expectation(wait)
        if expectation is not None and rates.per_s > 0.0:
            tally.predictions += 1
            tally.predicted_changes += expectation.changes
            tally.predicted_stale_s += expectation.stale_s
            tally.log_error_squares += math.log(expectation.rate / rates.per_s) ** 2
        start, at = at, at + wait
