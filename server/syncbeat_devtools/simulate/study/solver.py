"""Policies side by side: each brought to the same mean staleness on the same days of the same devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from syncbeat_devtools.simulate.engine.jobs import Crew, Job, Sample, jobs_of
from syncbeat_devtools.simulate.engine.tally import Tally, summed
from syncbeat_devtools.simulate.fleet.push_channel import Waking, handset
from syncbeat_devtools.simulate.policies.bounds import Bound, bound_of, signalled_bound
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings

_FIRST_GUESS = {
    PolicyRow.FIXED: 1.0,
    PolicyRow.TIERS: 0.205,
    PolicyRow.BACKOFF: 1.15,
    PolicyRow.EWMA: 1.5,
    PolicyRow.PULL: 1.2,
    PolicyRow.PRESENCE: 1.25,
    PolicyRow.CEILING: 1.13,
    PolicyRow.CAPPED_CEILING: 1.25,
    PolicyRow.ORACLE: 1.31,
}
"""Multipliers that give about 15 s on the default fleet."""
_SOLVED_AT_S = 15.0
_ROOTLESS = {PolicyRow.FIXED, PolicyRow.TIERS, PolicyRow.BACKOFF}
_MOST_MEAN_S, LATE_S, _MOST_LATE = 9.8, 32.0, 0.048
"""What the hybrid is solved for: below 10 s in the mean, and 32 s at the 95th percentile."""
LATENESS_S = 450.0
_HYBRID_GUESS, _HYBRID_STEPS = 0.95, 2
_PILOT_SHARE, _PILOT_LEAST = 0.15, 60
_STEPS, _CLOSE, _TELLING = 3, 0.004, 0.03
_FARTHEST = math.log(10.0)
"""How far from its first guess a multiplier is looked for: the few changes of a small log would lead anywhere."""
_SHORTEST_S = 0.001


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy came to: a tally a seed, the multiplier that met the target, and d ln(requests) / d ln(mean)."""

    row: PolicyRow
    tallies: dict[int, Tally]
    multiplier: float
    slope: float = -1.0
    bounds: dict[int, Bound] | None = None
    """The bounds of what this policy may use, where that is more than polls."""

    def at_target(self, seed: int, target_s: float) -> float:
        """Requests of a seed's sample, corrected for how far its mean is off the target."""
        tally = self.tallies[seed]
        return tally.requests * math.exp(self.slope * math.log(target_s / tally.mean_s))


@dataclass(frozen=True, slots=True)
class Days:
    """The samples of each seed and their bounds."""

    samples: tuple[Sample, ...]
    bounds: dict[int, Bound]

    @property
    def known(self) -> bool:
        """Whether the true rates are known, and so the bounds: they are not of a log."""
        return all(sample.trace is None for sample in self.samples)

    @property
    def fleet(self) -> int:
        """How many devices the figures are given for: the fleet's, or the log's own."""
        return self.samples[0].spec.devices if self.known else self.samples[0].size

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Days:
        """These samples."""
        return cls(tuple(samples), {sample.seed: bound_of(sample.devices()) for sample in samples})


def solved(row: PolicyRow, days: Days, settings: Settings, target_s: float, crew: Crew) -> Outcome:
    """The policy at the multiplier that gives the target as its mean staleness.

    It is found by the secant rule on logarithms, where the square-root law holds on a part of the devices: should that
    part's feeds be livelier than all are, its mean is off by the ratio of the means of sqrt(rate) and of rate. That
    ratio cannot be told of a log, whose rates nobody knows: all of its devices are solved on.
    """
    size = days.samples[0].size
    pilot, goal = size, target_s
    if row not in _ROOTLESS and days.known:
        pilot = pilot_size(size)
        goal *= _composition(days, pilot)
    points: list[tuple[float, float, float]] = []  # ln multiplier, ln mean, ln requests
    first = guess = math.log(_FIRST_GUESS[row] * target_s / _SOLVED_AT_S)
    for _ in range(_STEPS):
        tallies = crew.run(_jobs(row, days, replace(settings, multiplier=math.exp(guess)), pilot), f"{row}: tuning")
        mean, requests = _pooled(tallies)
        points.append((guess, math.log(mean), math.log(requests)))
        if row is PolicyRow.FIXED or abs(mean / goal - 1.0) < _CLOSE:
            break
        guess += (math.log(goal) - points[-1][1]) / _gain(points)
        guess = min(first + _FARTHEST, max(first - _FARTHEST, guess))
    multiplier = math.exp(guess)
    return Outcome(row, run(row, days, replace(settings, multiplier=multiplier), crew), multiplier, _slope(points))


def run(row: PolicyRow, days: Days, settings: Settings, crew: Crew, what: str = "") -> dict[int, Tally]:
    """The policy on all devices, as it is set."""
    return crew.run(_jobs(row, days, settings, days.samples[0].size), f"{row} {what}")


def pilot_size(size: int) -> int:
    """Of a sample of this size, how many devices a multiplier is solved on."""
    return min(size, max(_PILOT_LEAST, int(size * _PILOT_SHARE)))


def _jobs(row: PolicyRow, days: Days, settings: Settings, last: int) -> list[Job]:
    return [job for sample in days.samples for job in jobs_of(row, sample, settings, last)]


def _pooled(tallies: dict[int, Tally]) -> tuple[float, int]:
    total = summed(tallies.values())
    return max(_SHORTEST_S, total.mean_s), max(1, total.requests)


def _gain(points: list[tuple[float, float, float]]) -> float:
    """How the logarithm of the mean grows with that of the multiplier: near 1."""
    if len(points) < 2:
        return 1.0
    (m0, s0, _), (m1, s1, _) = points[-2:]
    return min(2.0, max(0.3, (s1 - s0) / (m1 - m0)))


def _slope(points: list[tuple[float, float, float]]) -> float:
    if len(points) < 2 or abs(points[-1][1] - points[0][1]) < _TELLING:
        return -1.0
    (_, s0, r0), (_, s1, r1) = points[0], points[-1]
    return min(-0.8, max(-1.6, (r1 - r0) / (s1 - s0)))


def _composition(days: Days, pilot: int) -> float:
    parts = [bound_of(sample.devices(0, pilot)) for sample in days.samples]
    return _root_mean(parts) / _root_mean(list(days.bounds.values()))


def _root_mean(bounds: list[Bound]) -> float:
    stretches = [stretch for bound in bounds for stretch in bound.pulling]
    changes = sum(rate * span for rate, span in stretches)
    return sum(math.sqrt(rate) * span for rate, span in stretches) / changes if changes else 1.0


def solved_hybrid(days: Days, settings: Settings, crew: Crew, row: PolicyRow = PolicyRow.HYBRID) -> Outcome:
    """The hybrid at a price that keeps both its limits, which pushes are missed measured on the way.

    One scalar is searched for: a late change is as bad as a fixed number of stale seconds.
    """
    settings = replace(settings, lateness_s=LATENESS_S, multiplier=_HYBRID_GUESS)
    settings = measured_misses(settings, summed(run(row, days, settings, crew, "learning").values()))
    points: list[tuple[float, float, float]] = []
    for _ in range(_HYBRID_STEPS):
        tally = summed(run(row, days, settings, crew, "tuning").values())
        settings = measured_misses(settings, tally)
        late = sum(delay > LATE_S for delay in tally.delays) / len(tally.delays)
        excess = math.log(max(tally.mean_s / _MOST_MEAN_S, late / _MOST_LATE))
        points.append((math.log(settings.multiplier), excess, 0.0))
        settings = replace(settings, multiplier=settings.multiplier * math.exp(-excess / _gain(points)))
    bounds = signalled_bounds(days, settings.waking) if days.known else None
    return Outcome(row, run(row, days, settings, crew), settings.multiplier, bounds=bounds)


def on_other_days(hybrid: Outcome, days: Days, settings: Settings, crew: Crew) -> tuple[Days, Outcome]:
    """The hybrid on twice as many other days, at the price and with the misses of these: neither was found on those."""
    last, few = max(days.bounds), 2 * len(days.samples)
    others = Days.of([replace(days.samples[0], seed=seed) for seed in range(last + 1, last + 1 + few)])
    settings = replace(settings, lateness_s=LATENESS_S, multiplier=hybrid.multiplier)
    settings = measured_misses(settings, summed(hybrid.tallies.values()))
    tallies = run(hybrid.row, others, settings, crew, "on other days")
    return others, replace(hybrid, tallies=tallies, bounds=signalled_bounds(others, settings.waking))


def measured_misses(settings: Settings, tally: Tally) -> Settings:
    """The settings with what a day has shown of how many pushes are missed."""
    return replace(
        settings, app_misses=tally.lost / max(1, tally.woken), push_misses=tally.missed / max(1, tally.tried)
    )


def signalled_bounds(days: Days, waking: Waking) -> dict[int, Bound]:
    """The bound of each seed's devices, where pushes and streams reach them as they do."""
    return {
        sample.seed: signalled_bound(
            sample.devices(),
            (handset(waking, sample.seed, index, sample.size) for index in range(sample.size)),
            waking,
        )
        for sample in days.samples
    }
