"""Jobs for parallel processes that replay days of a log, and what a server has learned when such a day begins."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import md5
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
from syncbeat_server.sync.policy.fit_samples import MAX_SCOPES, WANTED_SCOPES, History
from syncbeat_server.sync.policy.rhythm import NO_EVIDENCE, NO_RHYTHM, Rhythm, rhythm_of
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.tuning.hint_recorder import sampled
from syncbeat_server.sync.tuning.prior_fit import fit
from syncbeat_server.sync.tuning.rhythm_fit import count_hours, learn_rhythm

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
    rhythm: Rhythm = NO_RHYTHM

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
    """Return what a server has learned when a day begins: by the nightly fits before it."""
    day = log_day(key)
    span_s = key.history_days * DAY
    heard = sum(len(device.history) for device in day.devices)
    followed_s = sum(min(span_s, -device.born) for device in day.devices if device.born < 0.0)
    prior = _last_prior(day)
    return LearnedDay(
        key,
        len(day.devices),
        prior or DEFAULT_PRIOR,
        heard / followed_s if heard else _A_CHANGE_A_DAY,
        rhythm=NO_RHYTHM if prior is None else _rhythm(day, prior),
    )


def _last_prior(day: LogDay) -> Prior | None:
    """Return the prior of the last night whose changes were enough to fit one."""
    for nights in range(day.key.history_days):
        histories = _histories(day, -nights * DAY)
        fitted = fit(histories, DEFAULT_PRIOR) if histories else None
        if fitted is not None:
            return fitted.prior
    return None


def _rhythm(day: LogDay, prior: Prior) -> Rhythm:
    """Return the rhythm after all nights of the history."""
    evidence = NO_EVIDENCE
    for nights in reversed(range(1, day.key.history_days)):
        evidence = count_hours(_histories_at_unix(day, -nights * DAY), evidence)
    return rhythm_of(learn_rhythm(_histories_at_unix(day, 0.0), prior, evidence))


def _histories_at_unix(day: LogDay, end: float) -> list[History]:
    start = day.key.start
    return [
        History(one.start_s + start, one.end_s + start, [at + start for at in one.changes])
        for one in _histories(day, end)
    ]


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
    tuning = settings.tuning._replace(prior=learned.prior, rhythm=learned.rhythm)
    if job.row is PolicyRow.EWMA:
        tuning = tuning._replace(policy=SchedulingPolicy.SQRT_EWMA)
    return HintSchedule(day, device, tuning)


def _histories(day: LogDay, end: float) -> Sequence[History]:
    """Return the scopes that the nightly fit would be given at a second of the day (`tuning/nightly_fit.py`)."""
    known = [feed for feed in day.scopes if feed.born < end]
    start = end - DAY
    active = sum(any(start <= at < end for at in feed.changes) for feed in known)
    share = min(1.0, WANTED_SCOPES / max(1, active))
    found = [feed for feed in known if sampled(feed.scope, share)]
    chosen = sorted(found, key=lambda feed: md5(feed.scope.encode(), usedforsecurity=False).digest())[:MAX_SCOPES]
    return [
        History(max(start, feed.born), end, tuple(at for at in feed.changes if start <= at < end)) for feed in chosen
    ]
