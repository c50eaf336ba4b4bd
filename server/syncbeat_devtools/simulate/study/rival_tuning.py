"""Chooses the constants of the rivals on the days before those that are measured, and on nothing later."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_devtools.simulate.engine.jobs import JobRunner
from syncbeat_devtools.simulate.engine.log_jobs import LearnedDay, LogJob, play_log_job
from syncbeat_devtools.simulate.engine.log_replay import Plays
from syncbeat_devtools.simulate.engine.tally import Tally, sum_tallies
from syncbeat_devtools.simulate.fleet.devices import DAY
from syncbeat_devtools.simulate.fleet.log_days import DayKey
from syncbeat_devtools.simulate.policies.rivals import GRIDS, Constants
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_devtools.simulate.study.log_solver import first_multiplier

TUNING_DAYS = 2
"""The days before the measured ones on which constants are tried; each has its own history before it."""

_DEVICES = 150
_ROUNDS = 3
_MAX_FACTOR = 8.0
_MIN_MEAN_S = 1e-3


def tuning_days(first: DayKey, log_start: float) -> tuple[DayKey, ...]:
    """Return the whole days of the log before `first` on which rivals are tuned, as many as there are."""
    keys = (first._replace(start=first.start - back * DAY) for back in range(1, TUNING_DAYS + 1))
    return tuple(key for key in keys if key.start >= log_start)


def tune_rivals(
    days: Sequence[LearnedDay], settings: Settings, target_s: float, seed: int, runner: JobRunner
) -> dict[PolicyRow, Constants]:
    """Return for each rival the constants with the fewest requests at the target mean on these days.

    Requests are inversely proportional to the mean, nearly, so that what is left of the distance to the target after a
    few rounds is corrected by that law.
    """
    tried = [(row, constants) for row, grid in GRIDS.items() for constants in grid]
    multipliers = {one: first_multiplier(one[0], days[0].prior, target_s) for one in tried}
    least: dict[tuple[PolicyRow, Constants], float] = {}
    for _ in range(_ROUNDS):
        jobs = [
            LogJob(row, day, settings.at(multipliers[row, constants]), constants, Plays((seed,)), 0, _step(day))
            for row, constants in tried
            for day in days
        ]
        tallies = runner.map(play_log_job, jobs, "tuning rivals")
        for index, one in enumerate(tried):
            whole = sum_tallies(tallies[index * len(days) : (index + 1) * len(days)])
            least[one] = _requests_at(target_s, whole)
            ratio = target_s / max(_MIN_MEAN_S, whole.mean_s)
            multipliers[one] *= min(_MAX_FACTOR, max(1.0 / _MAX_FACTOR, ratio))
    return {row: min(grid, key=lambda constants: least[row, constants]) for row, grid in GRIDS.items()}


def _requests_at(target_s: float, tally: Tally) -> float:
    return tally.requests * tally.mean_s / target_s


def _step(day: LearnedDay) -> int:
    return max(1, day.size // _DEVICES)
