"""Tests the replay of logs: nothing comes from the future, and what is counted is what happened."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from syncbeat_devtools.simulate.engine.log_jobs import LearnedDay, LogJob, learn_day, make_log_schedule, play_log_job
from syncbeat_devtools.simulate.engine.log_replay import Intervals, Plays, enough_plays, play_log_day
from syncbeat_devtools.simulate.engine.tally import Tally
from syncbeat_devtools.simulate.fleet.devices import DAY, Device
from syncbeat_devtools.simulate.fleet.log_days import DayKey, log_day
from syncbeat_devtools.simulate.fleet.log_lines import LogFormat
from syncbeat_devtools.simulate.policies.hindsight import CELLS, count_circumstances, make_table
from syncbeat_devtools.simulate.policies.log_schedules import Answer, LogSchedule
from syncbeat_devtools.simulate.policies.rivals import USUAL, Constants, TimerSchedule
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_devtools.simulate.study.log_study import RIVALS
from syncbeat_server.sync.policy.interval import Bounds
from tests.simulate.made_logs import START, Message, talk, write_messages

pytestmark = pytest.mark.unit

DAYS, MEASURED, NOON = 4, 3, 43_200.0
ROWS = (*RIVALS, PolicyRow.PULL, PolicyRow.HINDSIGHT)
SETTINGS = Settings(1.5, Bounds(5.0, 600.0))
PLAYS = Plays((1, 2))
TABLE = tuple(1e-5 * (1 + cell % 97) for cell in range(CELLS))


class Noted:
    """A schedule that keeps what it was asked and what it answered."""

    def __init__(self, schedule: LogSchedule) -> None:
        self._schedule = schedule
        self.decisions: list[tuple[float, float]] = []

    def ask(self, now: float) -> Answer:
        """Note the answer."""
        answer = self._schedule.ask(now)
        self.decisions.append((now, answer.wait_s))
        return answer


def learn(path: Path) -> LearnedDay:
    """Return what is known at the start of the measured day."""
    return learn_day(DayKey(path, LogFormat.MESSAGES, START + MEASURED * DAY, 3))


def decisions_until_noon(row: PolicyRow, learned: LearnedDay) -> dict[str, list[tuple[float, float]]]:
    """Return all decisions of the day's first half, by device."""
    day, found = log_day(learned.key), {}
    job = LogJob(row, learned, SETTINGS, USUAL.get(row), Plays((1,)), table=TABLE)
    for device in day.devices:
        if device.born >= NOON:
            continue
        schedule = Noted(make_log_schedule(job, day, device))
        Intervals(device, schedule)
        found[day.names[device.index]] = [one for one in schedule.decisions if one[0] < NOON]
    return found


@pytest.mark.parametrize("row", ROWS)
def test_decisions_do_not_know_the_future(row: PolicyRow, tmp_path: Path) -> None:
    messages = talk(DAYS, 25, 3)
    known = [message for message in messages if message[0] < MEASURED * DAY + NOON]
    others: list[Message] = [(DAYS * DAY - at % NOON - 1.0, one, other) for at, other, one in messages[:300]]
    usual = decisions_until_noon(row, learn(write_messages(tmp_path / "log.txt", messages)))
    changed = decisions_until_noon(row, learn(write_messages(tmp_path / "other.txt", known + others)))
    assert len(usual) == 25
    assert usual == changed
    assert sum(map(len, usual.values())) >= 25 * (1 if row is PolicyRow.FIXED else 3)


def test_decisions_know_the_past(tmp_path: Path) -> None:
    messages = talk(DAYS, 25, 3)
    less = [message for message in messages if not 2 * DAY < message[0] < MEASURED * DAY + NOON / 2]
    for row in (PolicyRow.PULL, PolicyRow.TUNED_EWMA):
        usual = decisions_until_noon(row, learn(write_messages(tmp_path / f"{row}.txt", messages)))
        changed = decisions_until_noon(row, learn(write_messages(tmp_path / f"{row}-less.txt", less)))
        assert sum(usual[name] != changed[name] for name in usual) > 20


def test_polls_in_bulk_equal_single_polls() -> None:
    moments = [-50.0, 4000.0, 4100.0, 50_000.0]
    device = Device(0, (3990.0, 4120.0, 50_001.0), born=-DAY)
    constants, bounds = Constants(600.0, 7.0), Bounds(5.0, 150.0)
    tally = Tally()
    intervals = Intervals(device, TimerSchedule(constants, 1.0, bounds, moments))
    play_log_day(device, intervals, tally, 0.25, bounds.cap_s)

    polls: list[float] = []
    at = 0.25 * 30.0
    while at < DAY:
        polls.append(at)
        at += 30.0 if any(one <= at < one + 600.0 for one in moments) else 150.0
    assert tally.polls == len(polls)
    waits = [later - earlier for earlier, later in itertools.pairwise(polls)]
    assert tally.capped == sum(math.isclose(wait, 150.0) for wait in waits)
    delays = [next(poll for poll in polls if poll >= change) - change for change in device.changes]
    assert list(tally.delays) == pytest.approx(delays)


def test_fixed_polling_of_a_log_matches_theory(tmp_path: Path) -> None:
    learned = learn(write_messages(tmp_path / "log.txt", talk(DAYS, 40, 4)))
    tally = play_log_job(LogJob(PolicyRow.FIXED, learned, Settings(1.0), None, PLAYS))
    day = log_day(learned.key)
    there_s = sum(DAY - max(0.0, device.born) for device in day.devices)
    assert tally.requests == pytest.approx(PLAYS.total * there_s / 30.0, rel=0.001)
    assert tally.mean_s == pytest.approx(15.0, rel=0.01)
    assert len(tally.delays) == PLAYS.total * sum(len(device.changes) for device in day.devices)


def test_polls_at_the_longest_interval_are_told(tmp_path: Path) -> None:
    learned = learn(write_messages(tmp_path / "log.txt", talk(DAYS, 20, 5)))
    patient = play_log_job(LogJob(PolicyRow.PULL, learned, Settings(100.0, Bounds(5.0, 60.0)), None, PLAYS))
    assert patient.capped == pytest.approx(
        patient.polls, abs=20 * PLAYS.total
    )  # but for the first of who comes during the day
    eager = play_log_job(LogJob(PolicyRow.PULL, learned, Settings(0.001, Bounds(5.0, 60.0)), None, PLAYS))
    assert eager.capped == 0
    assert eager.polls > 5 * patient.polls


def test_circumstances_cover_the_day_and_all_changes(tmp_path: Path) -> None:
    learned = learn(write_messages(tmp_path / "log.txt", talk(DAYS, 20, 6)))
    counts = count_circumstances(learned.key)
    devices = log_day(learned.key).devices
    assert sum(counts.seconds) == pytest.approx(sum(DAY - max(0.0, device.born) for device in devices), rel=1e-6)
    assert sum(counts.changes) == sum(len(device.changes) for device in devices)
    table = make_table([counts])
    assert max(table) > 100 * min(table) > 0.0


def test_few_changes_are_played_often() -> None:
    assert enough_plays((1,), 1_000_000).total == 8
    assert enough_plays((1, 2), 1_000).total == 40
    assert enough_plays((1,), 0).total == 128
    moments = list(Plays((1, 2), 4).of("a"))
    assert len(moments) == 8
    assert max(later - earlier for earlier, later in itertools.pairwise(sorted(Plays((1,), 89).of("a")))) < 2.7 / 89
    assert moments == list(Plays((1, 2), 4).of("a")) != list(Plays((1, 2), 4).of("b"))
