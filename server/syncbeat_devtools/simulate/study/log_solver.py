"""Solves each policy for the same mean staleness on days of a log, by playing them: nothing of their rates is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from syncbeat_devtools.simulate.engine.jobs import JobRunner
from syncbeat_devtools.simulate.engine.log_jobs import LearnedDay, LogJob, play_log_job
from syncbeat_devtools.simulate.engine.log_replay import Plays
from syncbeat_devtools.simulate.engine.tally import Tally, sum_tallies
from syncbeat_devtools.simulate.policies.hindsight import Table
from syncbeat_devtools.simulate.policies.rivals import Constants
from syncbeat_devtools.simulate.policies.settings import DEFAULT_PRICE, PolicyRow, Settings
from syncbeat_server.defaults import TARGET_STALENESS_S
from syncbeat_server.sync.policy.price_controller import Target, TargetKind, first_price
from syncbeat_server.sync.policy.scope_prior import Prior

EQUAL = 0.01
"""The largest share by which a mean may miss the target and still count as equal."""

_TOLERANCE, _PILOT_TOLERANCE = 0.007, 0.02
_PILOT_STEP, _PILOT_STEPS, _FULL_STEPS = 4, 4, 8
_MIN_PILOT = 200
_NEAR, _FEW = 0.1, 3
_MAX_STRIDE = math.log(8.0)
_MAX_DISTANCE = math.log(1000.0)
_MIN_MEAN_S = 1e-3
_JOBS_PER_DAY = 2
_PRICED = {PolicyRow.EWMA, PolicyRow.PULL, PolicyRow.TUNED_EWMA, PolicyRow.HINDSIGHT}


@dataclass(frozen=True, slots=True)
class Group:
    """Days that are played at one multiplier, and the constants of the rivals that were best before them."""

    days: tuple[LearnedDay, ...]
    constants: dict[PolicyRow, Constants] = field(default_factory=dict)
    table: Table = ()
    """The rates of circumstances, which the row in hindsight is given."""


@dataclass(frozen=True, slots=True)
class LogOutcome:
    """The result of a policy: a tally for each day by its start, and each group's multiplier and mean."""

    row: PolicyRow
    tallies: dict[float, Tally]
    multipliers: tuple[float, ...]
    means_s: tuple[float, ...]

    @property
    def whole(self) -> Tally:
        """Return the sum of all days."""
        return sum_tallies(self.tallies.values())

    def is_equal(self, target_s: float) -> bool:
        """Tell if the mean of each group is the target."""
        return all(abs(mean_s / target_s - 1.0) <= EQUAL for mean_s in self.means_s)


class _Search:
    """Searches the logarithm of one group's multiplier by the secant rule, within the bracket that is known."""

    def __init__(self, group: Group, guess: float, goal_s: float) -> None:
        self.tolerance = _PILOT_TOLERANCE
        self.group, self.guess, self.goal = group, guess, math.log(goal_s)
        self.start = guess
        self._points: list[tuple[float, float]] = []
        self.tallies: list[Tally] = []
        self.best = math.inf
        self.best_guess = guess
        self.is_done = False

    def restart(self) -> None:
        """Forget the means of a pilot, but not the guess that they led to."""
        self._points.clear()
        self.best, self.is_done = math.inf, False
        self.tolerance = _TOLERANCE

    def found(self, tallies: list[Tally]) -> None:
        """Take the tallies of the guess, and make the next guess."""
        mean = math.log(max(_MIN_MEAN_S, sum_tallies(tallies).mean_s))
        self._points.append((self.guess, mean))
        if abs(mean - self.goal) < self.best:
            self.best, self.best_guess, self.tallies = abs(mean - self.goal), self.guess, tallies
        self.is_done = self.best < self.tolerance
        if not self.is_done:
            self._move()

    def _move(self) -> None:
        below = [point for point in self._points if point[1] < self.goal]
        above = [point for point in self._points if point[1] >= self.goal]
        low = max(below, default=None)
        high = min(above, default=None)
        near = [point for point in self._points if abs(point[1] - self.goal) < _NEAR]
        if len(near) >= _FEW:
            # Of few changes a mean is a matter of chance, also between two multipliers that are nearly the same.
            guess = math.fsum(at + self.goal - mean for at, mean in near) / len(near)
        elif low is not None and high is not None and high[0] > low[0]:
            share = (self.goal - low[1]) / (high[1] - low[1])
            guess = low[0] + min(0.9, max(0.1, share)) * (high[0] - low[0])
        else:
            guess = self.guess + self._stride()
        guess = min(self.start + _MAX_DISTANCE, max(self.start - _MAX_DISTANCE, guess))
        self.is_done = guess == self.guess
        self.guess = guess

    def _stride(self) -> float:
        gain, (last, mean) = 1.0, self._points[-1]
        if len(self._points) > 1:
            before, mean_before = self._points[-2]
            gain = min(2.0, max(0.1, (mean - mean_before) / (last - before))) if last != before else 1.0
        return min(_MAX_STRIDE, max(-_MAX_STRIDE, (self.goal - mean) / gain))


def solve_log(
    row: PolicyRow,
    groups: Sequence[Group],
    settings: Settings,
    target_s: float,
    plays: Plays,
    runner: JobRunner,
    *,
    roughly: bool = False,
) -> LogOutcome:
    """Play the policy at multipliers that give each group the target as its mean, to 1 % if the bounds allow it.

    It is searched on a part of the devices first, then on all of them; `roughly`: only on a part, if they are many.
    """
    searches = [
        _Search(group, math.log(first_multiplier(row, group.days[0].prior, target_s)), target_s) for group in groups
    ]
    are_many = all(sum(day.size // day.step for day in group.days) >= _MIN_PILOT * _PILOT_STEP for group in groups)
    if are_many:
        _search(row, searches, settings, plays, runner, _PILOT_STEP, _PILOT_STEPS)
    if not (are_many and roughly):
        for search in searches:
            search.restart()
        _search(row, searches, settings, plays, runner, 1, _FULL_STEPS)
    tallies = {
        day.key.start: tally
        for search in searches
        for day, tally in zip(search.group.days, search.tallies, strict=True)
    }
    return LogOutcome(
        row,
        dict(sorted(tallies.items())),
        tuple(math.exp(search.best_guess) for search in searches),
        tuple(sum_tallies(search.tallies).mean_s for search in searches),
    )


def _search(
    row: PolicyRow,
    searches: Sequence[_Search],
    settings: Settings,
    plays: Plays,
    runner: JobRunner,
    step: int,
    most: int,
) -> None:
    for _ in range(most):
        open_ones = [search for search in searches if not search.is_done]
        if not open_ones:
            return
        asked = [(search.group, settings.at(math.exp(search.guess))) for search in open_ones]
        for search, tallies in zip(open_ones, _play(row, asked, plays, runner, step), strict=True):
            search.found(tallies)


def _play(
    row: PolicyRow,
    asked: Sequence[tuple[Group, Settings]],
    plays: Plays,
    runner: JobRunner,
    step: int,
) -> list[list[Tally]]:
    """Play every `step`-th device. Returns the tallies of each group's days."""
    parts = _JOBS_PER_DAY if step == 1 else 1
    jobs = [
        LogJob(row, day, settings, group.constants.get(row), plays, part, parts * step, group.table)
        for group, settings in asked
        for day in group.days
        for part in range(parts)
    ]
    tallies = iter(runner.map(play_log_job, jobs, row.value))
    return [[sum_tallies(next(tallies) for _ in range(parts)) for _ in group.days] for group, _ in asked]


def first_multiplier(row: PolicyRow, prior: Prior, target_s: float) -> float:
    """Return the multiplier to begin a search with."""
    if row not in _PRICED:
        return target_s / TARGET_STALENESS_S
    price = first_price(Target(TargetKind.MEAN, target_s), prior).staleness
    return math.sqrt(DEFAULT_PRICE / price)
