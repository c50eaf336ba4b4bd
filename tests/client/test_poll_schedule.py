"""Tests the poll schedule of the client's `SmartSync`: delays, cursors and the clock that counts suspended time."""

from __future__ import annotations

import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat.activity import ActivityReports
from syncbeat.backoff import Backoff
from syncbeat.boottime_clock import BoottimeClock
from syncbeat.cursor_state import CursorState
from syncbeat.poll_schedule import SAFE_INTERVAL_S, PollSchedule
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb

pytestmark = pytest.mark.unit


def test_backoff_doubles_to_its_bound_with_full_jitter() -> None:
    drawn: list[list[float]] = [[] for _ in range(12)]
    for _ in range(300):
        backoff = Backoff(60.0)
        for delays in drawn:
            delays.append(backoff.next_delay())
    for index, delays in enumerate(drawn):
        most_s = min(60.0, 2.0 * 2**index)
        assert 0.9 * most_s < max(delays) <= most_s
        assert min(delays) < 0.1 * most_s


def test_backoff_before_the_first_hint_is_the_retry_delay() -> None:
    schedule = PollSchedule()
    assert schedule.due_at == 0.0
    schedule.record_failure(None, 10.0)
    assert 10.0 <= schedule.due_at <= 12.0
    schedule.record_failure(40.0, 10.0)
    assert 50.0 <= schedule.due_at <= 54.0


@pytest.mark.parametrize(("told_s", "valid_s", "least_s"), [(0, 3_600, 300), (20, 0, 300), (900, 0, 900), (20, 50, 20)])
def test_poll_interval_of_empty_or_expired_hint_is_the_safe_one(told_s: float, valid_s: float, least_s: float) -> None:
    schedule = PollSchedule()
    schedule.follow_hint(told_s, valid_s, 1_000.0)
    assert schedule.due_at == 1_000.0 + (told_s or SAFE_INTERVAL_S)
    schedule.record_failure(None, 1_000.0)
    assert least_s <= schedule.due_at - 1_000.0 <= least_s + 2.0


def test_poll_interval_is_at_most_an_hour() -> None:
    schedule = PollSchedule()
    schedule.hold_off(1e9, 0.0)
    assert schedule.not_before == 3_600.0
    schedule.hold_off(5.0, 10.0)
    assert schedule.not_before == 3_600.0


@given(st.lists(st.tuples(st.floats(0, 600), st.sampled_from(["show", "hide", "low", "full"])), max_size=60))
def test_activity_report_rate_limit_is_three_and_one_per_ten_seconds(steps: list[tuple[float, str]]) -> None:
    activity, now = ActivityReports(0.0), 0.0
    sent: list[float] = []
    activity.record_accepted(activity.message(0.0))
    for seconds, said in steps:
        now += seconds
        match said:
            case "show":
                activity.enter_foreground(now)
            case "hide":
                activity.enter_background()
            case _:
                activity.set_battery(low=said == "low")
        if activity.report_at(now, streaming=False) <= now:
            activity.record_sent(now)
            activity.record_accepted(activity.message(now))
            sent.append(now)
    for index, first in enumerate(sent):
        for count, later in enumerate(sent[index:], start=1):
            assert count <= 3 + (later - first) / 10 + 1e-6


def test_wanted_cursors_are_bounded() -> None:
    state = CursorState([])
    state.compare(core_pb2.ScopeCursor(scope=str(number), epoch="e", sequence=1) for number in range(10_050))
    assert len(state.pending) == 10_000
    for number in range(100):
        state.request("0", ack=str(number))
    assert len(state.pending["0"].acks) == 20


def test_cursor_without_epoch_is_of_the_present_epoch() -> None:
    state = CursorState([core_pb2.ScopeCursor(scope="s", sequence=4)])
    state.compare([core_pb2.ScopeCursor(scope="s", epoch="e", sequence=4)])
    assert not state.pending
    assert not state.accepts(pb.Change(scope="s", epoch="e", sequence=4))
    assert state.accepts(pb.Change(scope="s", epoch="e", sequence=5))


def test_left_scopes_are_those_unnamed_unless_more_are_flagged() -> None:
    state = CursorState([core_pb2.ScopeCursor(scope="s", sequence=4)])
    told = [core_pb2.ScopeCursor(scope=str(number)) for number in range(2_000)]
    for count in (0, 499, 501, 2_000):
        assert state.left_scopes(told[:count], pb.Hint()) == ["s"]
        assert state.left_scopes(told[:count], pb.Hint(more_scopes=True)) == []
    assert (
        state.left_scopes(told[:500], pb.Hint()) == []
    )  # an older server names so many at most, and says nothing of it


@pytest.mark.skipif(sys.platform != "linux", reason="the clock is another one")
def test_clock_counts_suspended_time() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    told = BoottimeClock().monotonic()
    assert before <= told <= time.clock_gettime(time.CLOCK_BOOTTIME)
