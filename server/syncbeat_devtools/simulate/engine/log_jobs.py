"""Jobs for parallel processes that replay days of a log, and what a server has learned when such a day begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_devtools.simulate.engine.log_replay import Intervals, Plays, play_log_day
from syncbeat_devtools.simulate.engine.tally import Tally
from syncbeat_devtools.simulate.fleet.devices import DAY, Device
from syncbeat_devtools.simulate.fleet.log_days import DayKey, LogDay, log_day
from syncbeat_devtools.simulate.policies.hindsight import Circumstances, HindsightSchedule, Table
from syncbeat_devtools.simulate.policies.log_schedules import EvenSchedule, HintSchedule, LogSchedule
from syncbeat_devtools.simulate.policies.rivals import USUAL, AverageSchedule, Constants, TimerSchedule, activity_of
from syncbeat_devtools.simulate.policies.schedules import FixedSchedule
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_server.defaults import SchedulingPolicy
from syncbeat_server.sync.policy.fit_samples import History
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.tuning.hint_recorder import sampled
from syncbeat_server.sync.tuning.prior_fit import fit

_WANTED_SCOPES, _MAX_SCOPES = 300.0, 1_000
_A_CHANGE_A_DAY = 1.0 / DAY


class LearnedDay(NamedTuple):
    """Holds what a server has learned of an app when a day begins: from its history, and from nothing later.

    `device_rate` is the mean of its devices' changes a second. Every `step`-th device is played.
    """

    key: DayKey
    size: int
    prior: Prior
    device_rate: float
    step: int = 1

    def played(self) -> Sequence[Device]:
        """Return the devices that are played."""
        return log_day(self.key).devices[:: self.step]


class LogJob(NamedTuple):
    """One policy over every `step`-th played device of a day from `first` on."""

    row: PolicyRow
    learned: LearnedDay
    settings: Settings
    constants: Constants | None
    plays: Plays
    first: int = 0
    step: int = 1
    table: Table = ()


def learn_day(key: DayKey) -> LearnedDay:
    """Return what a server has learned when a day begins: the prior of its last nightly fit, made on the day before."""
    day = log_day(key)
    span_s = key.history_days * DAY
    heard = sum(len(device.history) for device in day.devices)
    followed_s = sum(min(span_s, -device.born) for device in day.devices if device.born < 0.0)
    histories = _histories(day)
    fitted = fit(histories, DEFAULT_PRIOR) if histories else None
    return LearnedDay(
        key,
        len(day.devices),
        DEFAULT_PRIOR if fitted is None else fitted.prior,
        heard / followed_s if heard else _A_CHANGE_A_DAY,
    )


def play_log_job(job: LogJob) -> Tally:
    """Play a day of the job's devices."""
    tally, day = Tally(), log_day(job.learned.key)
    cap_s = job.settings.bounds.cap_s
    for device in job.learned.played()[job.first :: job.step]:
        intervals = Intervals(device, make_log_schedule(job, day, device))
        for phase in job.plays.of(f"{job.learned.key.start}:{day.names[device.index]}"):
            play_log_day(device, intervals, tally, phase, cap_s)
    return tally


def make_log_schedule(job: LogJob, day: LogDay, device: Device) -> LogSchedule:
    """Return the schedule of a device of the day by the policy of a job."""
    settings, learned = job.settings, job.learned
    constants = job.constants or USUAL.get(job.row, Constants(0.0, 0.0))
    own = day.active.get(day.names[device.index], ())
    match job.row:
        case PolicyRow.FIXED:
            return EvenSchedule(FixedSchedule(settings))
        case PolicyRow.TUNED_EWMA:
            return AverageSchedule(constants, settings.price.staleness, settings.bounds, device, learned.device_rate)
        case PolicyRow.AFTER_ACTIVITY:
            return TimerSchedule(constants, settings.multiplier, settings.bounds, activity_of(device, own))
        case PolicyRow.BY_SCREEN:
            return TimerSchedule(constants, settings.multiplier, settings.bounds, own)
        case PolicyRow.HINDSIGHT:
            known = Circumstances(day, device)
            return HindsightSchedule(job.table, known, settings.price.staleness, settings.bounds)
        case _:
            return _hint_schedule(job, day, device)


def _hint_schedule(job: LogJob, day: LogDay, device: Device) -> HintSchedule:
    settings, learned = job.settings, job.learned
    tuning = settings.tuning._replace(prior=learned.prior)
    if job.row is PolicyRow.EWMA:
        tuning = tuning._replace(policy=SchedulingPolicy.SQRT_EWMA)
    return HintSchedule(day, device, tuning)


def _histories(day: LogDay) -> Sequence[History]:
    """Return the scopes that the nightly fit would be given at the start of a day (`tuning/nightly_fit.py`)."""
    known = [feed for feed in day.scopes if feed.born < 0.0]
    active = sum(any(-DAY <= at < 0.0 for at in feed.changes) for feed in known)
    share = min(1.0, _WANTED_SCOPES / max(1, active))
    chosen = [feed for feed in known if sampled(feed.scope, share)][:_MAX_SCOPES]
    return [History(max(-DAY, feed.born), 0.0, tuple(at for at in feed.changes if -DAY <= at < 0.0)) for feed in chosen]
