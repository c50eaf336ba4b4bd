"""Generates fleets: their devices, the changes of their feeds over a day, and the sessions of their users.

A feed is a two-state process: it is cold, a session makes it hot, and within each state changes come at random at the
feed's own rate. Sessions begin by the time of day. Everything is derived from (seed, index), so a device is the same in
every sample, process and order.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

DAY = 86_400.0
HOUR = 3_600.0
_NORMAL = NormalDist()
_BUSIEST_AT = 20 * HOUR


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """Parameters of a fleet. Rates are medians over feeds, in changes per second; sigmas are of their logarithms."""

    name: str
    hot_per_s: float
    cold_per_s: float
    hot_sigma: float = 0.0
    cold_sigma: float = 0.0
    session_s: float = 720.0
    """Mean length of a session."""
    gap_s: float = math.inf
    """Mean time from one session to the next, at the middle of the daily swing."""
    swing: float = 0.0
    """Sessions begin exp(swing) times as often at the busiest hour, and exp(-swing) times at the quietest."""
    factor_sigma: float = 0.0
    factor_most: float = math.inf
    """A further factor exp(sigma*z - sigma) applies to both rates of a feed, with z limited to `factor_most`."""
    devices: int = 20_000

    def start_rate(self, at: float) -> float:
        """Return the sessions that begin per second at this second of the day."""
        if self.swing == 0.0:
            return 1.0 / self.gap_s
        return math.exp(self.swing * math.cos(2 * math.pi * (at - _BUSIEST_AT) / DAY)) / self.gap_s


DEFAULT = FleetSpec(
    "default",
    hot_per_s=20 / HOUR,
    cold_per_s=0.4 / HOUR,
    hot_sigma=0.8,
    cold_sigma=1.0,
    gap_s=330 * 60.0,
    swing=0.946,
)
CONSTANT = FleetSpec("constant", hot_per_s=1.8 / HOUR, cold_per_s=1.8 / HOUR)
BURSTY = FleetSpec(
    "bursty", hot_per_s=120 / HOUR, cold_per_s=0.1 / HOUR, session_s=180.0, gap_s=285 * 60.0, swing=0.946
)
HEAVY = FleetSpec(
    "heavy",
    hot_per_s=20 / HOUR,
    cold_per_s=0.4 / HOUR,
    gap_s=330 * 60.0,
    swing=0.946,
    factor_sigma=2.0,
    factor_most=2.2,
)
FLEETS = {spec.name: spec for spec in (DEFAULT, CONSTANT, BURSTY, HEAVY)}


class Segment(NamedTuple):
    """A part of the day in which a feed changes at one rate."""

    start: float
    end: float
    per_s: float
    hot: bool


@dataclass(frozen=True, slots=True)
class Device:
    """A device and its feed: true rates and segments (empty for a replayed log), and the times of changes."""

    index: int
    changes: tuple[float, ...]
    segments: tuple[Segment, ...] = ()
    hot_per_s: float = 0.0
    cold_per_s: float = 0.0
    born: float = 0.0
    history: tuple[float, ...] = ()
    """Changes since the feed was `born`, at seconds below 0, from which the server has learned."""
    sessions: tuple[tuple[float, float], ...] = ()
    """Times in which a user is active in the feed; in a replayed log, in which its device was in the foreground."""


def make_device(spec: FleetSpec, seed: int, index: int, sample: int, history_days: int = 0) -> Device:
    """Generate the device `index` of a sample of `sample` devices, whose feed has existed for `history_days`."""
    hot, cold = _rates(spec, seed, index, sample)
    chance = random.Random(f"{spec.name}:{seed}:{index}")
    # At least one day is played before, so that at midnight a session is as likely as on any other midnight.
    before = _segments(spec, -max(1, history_days) * DAY, 0.0, (hot, cold), chance)
    segments = _segments(spec, 0.0, DAY, (hot, cold), chance, busy=before[-1].hot)
    history = _changes(before, chance) if history_days else []
    changes = _changes(segments, chance)
    sessions = tuple((segment.start, segment.end) for segment in segments if segment.hot)
    return Device(index, tuple(changes), tuple(segments), hot, cold, -history_days * DAY, tuple(history), sessions)


def _changes(segments: list[Segment], chance: random.Random) -> list[float]:
    found: list[float] = []
    for segment in segments:
        at = segment.start + chance.expovariate(segment.per_s)
        while at < segment.end:
            found.append(at)
            at += chance.expovariate(segment.per_s)
    return found


def _rates(spec: FleetSpec, seed: int, index: int, sample: int) -> tuple[float, float]:
    hot = spec.hot_per_s * math.exp(spec.hot_sigma * _normal(seed, "hot", index, sample))
    cold = spec.cold_per_s * math.exp(spec.cold_sigma * _normal(seed, "cold", index, sample))
    factor = 1.0
    if spec.factor_sigma:
        z = min(spec.factor_most, _normal(seed, "factor", index, sample))
        factor = math.exp(spec.factor_sigma * (z - 1.0))
    return hot * factor, cold * factor


def _normal(seed: int, what: str, index: int, sample: int) -> float:
    """Return a normal number from this device's stratum, so that a sample is as active as the fleet."""
    stratum = strata(seed, what, sample)[index]
    within = random.Random(f"{what}:{seed}:{index}").uniform(0.001, 0.999)
    return _NORMAL.inv_cdf((stratum + within) / sample)


@lru_cache(maxsize=16)
def strata(seed: int, what: str, sample: int) -> list[int]:
    """Return the numbers below `sample` in random order, one for each device."""
    order = list(range(sample))
    random.Random(f"{what}:{seed}").shuffle(order)
    return order


def _segments(
    spec: FleetSpec, start: float, end: float, rates: tuple[float, float], chance: random.Random, *, busy: bool = False
) -> list[Segment]:
    """Return the segments from `start` to `end`, both whole days; `busy`: a session is in progress at the start."""
    hot, cold = rates
    if math.isinf(spec.gap_s):
        return [Segment(start, end, cold, hot=False)] if start < end else []
    found: list[Segment] = []
    most = math.exp(spec.swing) / spec.gap_s
    at = start
    while at < end:
        if busy:
            until = at + chance.expovariate(1.0 / spec.session_s)
        else:
            until = at + chance.expovariate(most)
            while until < end and chance.random() * most > spec.start_rate(until):
                until += chance.expovariate(most)
        until = min(until, end)
        found.append(Segment(at, until, hot if busy else cold, busy))
        at, busy = until, not busy
    return found
