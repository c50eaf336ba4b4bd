"""Plays a day of a log's device that only polls."""

from __future__ import annotations

import math

from syncbeat_devtools.simulate.engine.tally import AWAKE_S, EMPTY_POLL_BYTES, FETCH_BYTES, Tally
from syncbeat_devtools.simulate.fleet.devices import DAY, Device
from syncbeat_devtools.simulate.policies.log_schedules import LogSchedule

_AT_CAP = 1.0 - 1e-9


def play_log_day(device: Device, schedule: LogSchedule, tally: Tally, phase: float, cap_s: float) -> None:
    """Let the device poll for a day by this schedule, from midnight on or from the moment it joins.

    At midnight it is in the middle of an interval, of which the fraction `phase` is left. Polls after the day are not
    counted, but their changes are. A poll is `capped` if it came since the longest interval, `cap_s`, had passed.
    """
    changes, count, seen = device.changes, len(device.changes), 0
    tally.devices += 1
    if device.born >= 0.0:
        at, wait_s = device.born, 0.0
    else:
        wait_s = schedule.ask(0.0).wait_s
        at = phase * wait_s
    while True:
        before = seen
        while seen < count and changes[seen] <= at:
            tally.delays.append(at - changes[seen])
            seen += 1
        if at >= DAY:
            return
        _count(tally, wait_s, 1, capped=wait_s >= cap_s * _AT_CAP)
        tally.traffic_bytes += FETCH_BYTES if seen > before else EMPTY_POLL_BYTES
        wait_s, until = schedule.ask(at)
        stop = min(until, changes[seen] if seen < count else DAY, DAY)
        # Polls that find nothing, before anything could change the policy's answer.
        empty = math.ceil((stop - at) / wait_s) - 1 if stop > at + wait_s else 0
        if empty > 0:
            _count(tally, wait_s, empty, capped=wait_s >= cap_s * _AT_CAP)
            tally.traffic_bytes += empty * EMPTY_POLL_BYTES
            at += empty * wait_s
        at += wait_s


def _count(tally: Tally, wait_s: float, polls: int, *, capped: bool) -> None:
    """Count polls at even intervals."""
    tally.polls += polls
    if capped:
        tally.capped += polls
    if wait_s > AWAKE_S:
        tally.wakeups += polls
