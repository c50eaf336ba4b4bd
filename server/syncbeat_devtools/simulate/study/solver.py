"""Solves each policy for the same mean staleness on the same days of the same devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from syncbeat_devtools.simulate.engine.jobs import Job, JobRunner, Sample, split_jobs
from syncbeat_devtools.simulate.engine.tally import Tally, sum_tallies
from syncbeat_devtools.simulate.fleet.log_days import log_day
from syncbeat_devtools.simulate.fleet.push_channel import PushConditions, handset
from syncbeat_devtools.simulate.policies.bounds import Bound, poll_bound, signalled_bound
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
_WITHOUT_SQUARE_ROOT = {PolicyRow.FIXED, PolicyRow.TIERS, PolicyRow.BACKOFF}
_MAX_MEAN_S, LATE_S, _MAX_LATE_SHARE = 9.8, 32.0, 0.048
"""Targets of the hybrid: a mean below 10 s, and a 95th percentile of 32 s."""
LATENESS_S = 450.0
_HYBRID_GUESS, _HYBRID_STEPS = 0.95, 2
_PILOT_SHARE, _MIN_PILOT = 0.15, 60
_STEPS, _TOLERANCE, _MIN_SPREAD = 3, 0.004, 0.03
_MAX_DISTANCE = math.log(10.0)
"""Limit of the search around the first guess: the few changes of a small log could lead anywhere."""
_MIN_MEAN_S = 0.001


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a policy: a tally per seed, the multiplier that met the target, and d ln(requests) / d ln(mean)."""

    row: PolicyRow
    tallies: dict[int, Tally]
    multiplier: float
    slope: float = -1.0
    bounds: dict[int, Bound] | None = None
    """Bounds for the signals that this policy uses, if it does not only poll."""

    def at_target(self, seed: int, target_s: float) -> float:
        """Return the requests of a seed's sample, corrected for the deviation of its mean from the target."""
        tally = self.tallies[seed]
        return tally.requests * math.exp(self.slope * math.log(target_s / tally.mean_s))


@dataclass(frozen=True, slots=True)
class Days:
    """The samples of each seed and their bounds."""

    samples: tuple[Sample, ...]
    bounds: dict[int, Bound]

    @property
    def has_true_rates(self) -> bool:
        """Tell if the true rates, and so the bounds, are known; those of a log are not."""
        return all(sample.log is None for sample in self.samples)

    @property
    def fleet(self) -> int:
        """Return the number of devices that figures are scaled to: the fleet's, or those of a log on a mean day."""
        if self.has_true_rates:
            return self.samples[0].spec.devices
        sizes = [len(log_day(sample.log).devices) for sample in self.samples if sample.log is not None]
        return round(sum(sizes) / len(sizes))

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Days:
        """Compute the bounds of these samples."""
        return cls(tuple(samples), {sample.seed: poll_bound(sample.devices()) for sample in samples})


def solve(row: PolicyRow, days: Days, settings: Settings, target_s: float, runner: JobRunner) -> Outcome:
    """Run the policy at the multiplier that gives the target as its mean staleness.

    The multiplier is found by the secant rule on logarithms, for square-root policies on a pilot, which is a part of
    the devices. If the pilot's feeds are more active than all are, its mean is off by the ratio of the means of
    sqrt(rate) and of rate. Logs, whose rates are unknown, have a solver of their own.
    """
    size = days.samples[0].size
    pilot, goal = size, target_s
    if row not in _WITHOUT_SQUARE_ROOT:
        pilot = pilot_size(size)
        goal *= _composition(days, pilot)
    points: list[tuple[float, float, float]] = []  # ln multiplier, ln mean, ln requests
    first = guess = math.log(_FIRST_GUESS[row] * target_s / _SOLVED_AT_S)
    for _ in range(_STEPS):
        tallies = runner.run(_jobs(row, days, replace(settings, multiplier=math.exp(guess)), pilot), f"{row}: tuning")
        mean, requests = _totals(tallies)
        points.append((guess, math.log(mean), math.log(requests)))
        if row is PolicyRow.FIXED or abs(mean / goal - 1.0) < _TOLERANCE:
            break
        guess += (math.log(goal) - points[-1][1]) / _gain(points)
        guess = min(first + _MAX_DISTANCE, max(first - _MAX_DISTANCE, guess))
    multiplier = math.exp(guess)
    return Outcome(row, run(row, days, replace(settings, multiplier=multiplier), runner), multiplier, _slope(points))


def run(row: PolicyRow, days: Days, settings: Settings, runner: JobRunner, what: str = "") -> dict[int, Tally]:
    """Run the policy on all devices with these settings."""
    return runner.run(_jobs(row, days, settings), f"{row} {what}")


def pilot_size(size: int) -> int:
    """Return the number of devices, of a sample of this size, on which a multiplier is solved."""
    return min(size, max(_MIN_PILOT, int(size * _PILOT_SHARE)))


def _jobs(row: PolicyRow, days: Days, settings: Settings, last: int | None = None) -> list[Job]:
    return [job for sample in days.samples for job in split_jobs(row, sample, settings, last or sample.size)]


def _totals(tallies: dict[int, Tally]) -> tuple[float, int]:
    total = sum_tallies(tallies.values())
    return max(_MIN_MEAN_S, total.mean_s), max(1, total.requests)


def _gain(points: list[tuple[float, float, float]]) -> float:
    """Return d ln(mean) / d ln(multiplier), which is near 1."""
    if len(points) < 2:
        return 1.0
    (m0, s0, _), (m1, s1, _) = points[-2:]
    return min(2.0, max(0.3, (s1 - s0) / (m1 - m0)))


def _slope(points: list[tuple[float, float, float]]) -> float:
    if len(points) < 2 or abs(points[-1][1] - points[0][1]) < _MIN_SPREAD:
        return -1.0
    (_, s0, r0), (_, s1, r1) = points[0], points[-1]
    return min(-0.8, max(-1.6, (r1 - r0) / (s1 - s0)))


def _composition(days: Days, pilot: int) -> float:
    parts = [poll_bound(sample.devices(0, pilot)) for sample in days.samples]
    return _root_mean(parts) / _root_mean(list(days.bounds.values()))


def _root_mean(bounds: list[Bound]) -> float:
    stretches = [stretch for bound in bounds for stretch in bound.polled]
    changes = sum(rate * span for rate, span in stretches)
    return sum(math.sqrt(rate) * span for rate, span in stretches) / changes if changes else 1.0


def solve_hybrid(days: Days, settings: Settings, runner: JobRunner, row: PolicyRow = PolicyRow.HYBRID) -> Outcome:
    """Run the hybrid at a price that meets both its targets; the share of missed pushes is measured on the way.

    One variable is solved for, because a late change is equivalent to a fixed number of stale seconds.
    """
    settings = replace(settings, lateness_s=LATENESS_S, multiplier=_HYBRID_GUESS)
    settings = with_measured_misses(settings, sum_tallies(run(row, days, settings, runner, "learning").values()))
    points: list[tuple[float, float, float]] = []
    for _ in range(_HYBRID_STEPS):
        tally = sum_tallies(run(row, days, settings, runner, "tuning").values())
        settings = with_measured_misses(settings, tally)
        late = sum(delay > LATE_S for delay in tally.delays) / len(tally.delays)
        excess = math.log(max(tally.mean_s / _MAX_MEAN_S, late / _MAX_LATE_SHARE))
        points.append((math.log(settings.multiplier), excess, 0.0))
        settings = replace(settings, multiplier=settings.multiplier * math.exp(-excess / _gain(points)))
    bounds = signalled_bounds(days, settings.conditions) if days.has_true_rates else None
    return Outcome(row, run(row, days, settings, runner), settings.multiplier, bounds=bounds)


def run_on_other_days(hybrid: Outcome, days: Days, settings: Settings, runner: JobRunner) -> tuple[Days, Outcome]:
    """Run the hybrid on twice as many other days, at the price and with the misses that these days gave."""
    last, few = max(days.bounds), 2 * len(days.samples)
    others = Days.of([replace(days.samples[0], seed=seed) for seed in range(last + 1, last + 1 + few)])
    settings = replace(settings, lateness_s=LATENESS_S, multiplier=hybrid.multiplier)
    settings = with_measured_misses(settings, sum_tallies(hybrid.tallies.values()))
    tallies = run(hybrid.row, others, settings, runner, "on other days")
    return others, replace(hybrid, tallies=tallies, bounds=signalled_bounds(others, settings.conditions))


def with_measured_misses(settings: Settings, tally: Tally) -> Settings:
    """Return the settings with the shares of missed pushes that a day has shown."""
    return replace(
        settings, app_misses=tally.lost / max(1, tally.woken), push_misses=tally.missed / max(1, tally.tried)
    )


def signalled_bounds(days: Days, conditions: PushConditions) -> dict[int, Bound]:
    """Return the bound of each seed's devices, given the pushes and streams that reach them."""
    return {
        sample.seed: signalled_bound(
            sample.devices(),
            (handset(conditions, sample.seed, index, sample.size) for index in range(sample.size)),
            conditions,
        )
        for sample in days.samples
    }
