"""Computes the time that a device may wait: until the stale seconds that a poll will find are worth one poll. Pure.

A poll after t seconds of an outlook finds, in expectation, D(t) = integral of rate(s) * (t - s) ds stale seconds. Of
all causal policies with one price V for a stale second, the best polls when V * D(t) reaches the cost of a poll; for a
constant rate that is the square-root law t = sqrt(2 * cost / (V * rate)) (Cho and Garcia-Molina, "Effective page
refresh policies for web crawlers", 2003, and Sia, Cho and Cho, "Efficient monitoring algorithm for fast news alerts",
2007, for the delay of each change).
"""

from __future__ import annotations

from math import exp, sqrt
from typing import NamedTuple

from syncbeat_server.sync.policy.belief import Outlook

_STEPS = 8
_EXACT = 1e-3
_SLOW_FADE = 1e-4  # below this fade * t the series is used, since the closed form loses its digits


class Price(NamedTuple):
    """Holds the cost of a second of staleness, in polls, and that of a late change (see `poll_interval`)."""

    staleness: float
    lateness: float = 0.0


class Bounds(NamedTuple):
    """Holds the shortest and the longest interval, in seconds."""

    floor_s: float
    cap_s: float


def expected_staleness(outlook: Outlook, wait_s: float) -> tuple[float, float]:
    """Return the stale seconds and the number of changes that a poll after `wait_s` is expected to find."""
    level, swing, fade = outlook
    x = fade * wait_s
    if x < _SLOW_FADE:
        once, twice = wait_s * (1.0 - x / 2.0), wait_s * wait_s * (0.5 - x / 6.0)
    else:
        once = (1.0 - exp(-x)) / fade
        twice = (wait_s - once) / fade
    return level * wait_s * wait_s / 2.0 + swing * twice, level * wait_s + swing * once


def break_even_wait(outlook: Outlook, price: float, cost: float, bounds: Bounds) -> float:
    """Return the wait within bounds after which the stale seconds that a poll will find are worth it.

    Found by Newton's method. They are a convex, growing function of the wait, so that after at most one step it is
    approached from above.
    """
    floor_s, cap_s = bounds
    enough, rate = cost / price, outlook.rate
    if rate <= 0.0:
        return cap_s
    # Compares where `min` and `max` would be called, which take a third of each hint's time here (`hint_vs_echo`).
    wait = sqrt(2.0 * enough / rate)
    if wait < floor_s:
        wait = floor_s
    if wait > cap_s:
        wait = cap_s
    for _ in range(_STEPS):
        stale, changes = expected_staleness(outlook, wait)
        better = wait - (stale - enough) / changes
        if better < floor_s:
            better = floor_s
        if better > cap_s:
            better = cap_s
        if -_EXACT * wait <= better - wait <= _EXACT * wait:
            return better
        wait = better
    return wait


def poll_interval(outlook: Outlook, price: Price, cost: float, bounds: Bounds, late_s: float) -> float:
    """Return the seconds until the next poll, within bounds.

    With a price of lateness a change that is seen later than `late_s` costs that much beside its stale seconds. Then a
    wait is either short enough for nothing to be late, or the scope is so quiet that lateness is accepted and the wait
    is a longer one: whichever costs less a second.
    """
    plain = break_even_wait(outlook, price.staleness, cost, bounds)
    if price.lateness <= 0.0 or plain <= late_s:
        return plain
    rate = expected_staleness(outlook, plain)[1] / plain
    if rate <= 0.0:
        return plain
    punctual = max(bounds.floor_s, min(late_s, plain))
    margin = cost - price.lateness * late_s * rate
    if margin <= 0.0:
        return punctual
    patient = min(bounds.cap_s, max(bounds.floor_s, sqrt(2.0 * margin / (price.staleness * rate))))
    if patient <= late_s:
        return punctual
    late = price.lateness * rate * (patient - late_s)
    if (cost + price.staleness * rate * patient * patient / 2.0 + late) / patient < (
        cost + price.staleness * expected_staleness(outlook, punctual)[0]
    ) / punctual:
        return patient
    return punctual
