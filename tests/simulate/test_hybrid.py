"""Pushes, streams and resends of a simulated day, and what the systems let through."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from syncbeat_devtools.simulate.engine.hybrid_day import HybridDay
from syncbeat_devtools.simulate.engine.tally import Tally
from syncbeat_devtools.simulate.fleet.devices import DAY, DEFAULT, HOUR, Device, Segment, make_device
from syncbeat_devtools.simulate.fleet.push_channel import ANDROID, IOS, Handset, PushChannel, PushConditions, handset
from syncbeat_devtools.simulate.policies.bounds import poll_bound, signalled_bound
from syncbeat_devtools.simulate.policies.settings import Settings
from syncbeat_server.sync.policy import hint
from syncbeat_server.sync.policy.hint import IntervalDecision

pytestmark = pytest.mark.unit

EXACT = PushConditions(loss=0.0, latency_s=3.0, latency_sigma=0.0)
QUIET = Settings(1.0, conditions=EXACT, app_misses=0.0)
HISTORY = tuple(-HOUR * hours for hours in range(48, 0, -1))


class Hinted(Tally):
    """A tally that also keeps when requests came, each hint (moment, seconds), and the number of each poll's hint."""

    __slots__ = ("hints", "moments", "polled")

    def __init__(self) -> None:
        super().__init__()
        self.hints: list[tuple[float, float]] = []
        self.moments: list[float] = []
        self.polled: list[tuple[int, float]] = []

    def request(self, at: float) -> None:
        """Note it; a poll, which is counted just before, with the hint that it follows."""
        super().request(at)
        self.moments.append(at)
        if self.polls + self.safety_polls > len(self.polled):
            self.polled.append((len(self.hints) - 1, at))


def feed(*changes: float, sessions: tuple[tuple[float, float], ...] = ()) -> Device:
    """A device that sees these changes."""
    return Device(0, changes, (Segment(0.0, DAY, 1 / HOUR, hot=False),), 0.0, 1 / HOUR, -2 * DAY, HISTORY, sessions)


def a_day(
    device: Device, settings: Settings, platform: str = ANDROID, *, reachable: bool = True, dark: float = 0.0
) -> Tally:
    """Of one device; dark from noon for so long."""
    tally = Tally()
    spells = ((DAY / 2, DAY / 2 + dark),) if dark else ()
    HybridDay(device, Handset(platform, reachable, spells), settings, tally, random.Random(1)).run()
    return tally


def test_push_brings_a_change_without_polls() -> None:
    tally = a_day(feed(8 * HOUR, 9 * HOUR, 9 * HOUR + 1.0, 10 * HOUR), QUIET)
    assert list(tally.delays) == pytest.approx([3.0, 3.0, 2.0, 3.0])  # one push serves what came while it was under way
    assert (tally.fetches, tally.pushes, tally.resends, tally.lost) == (3, 3, 0, 0)
    assert tally.polls == 0
    assert tally.safety_polls <= 24


def test_dedupe_window_delays_only_the_last_change() -> None:
    windows = replace(QUIET, conditions=replace(EXACT, window_s=300.0))
    at = 8 * HOUR
    tally = a_day(feed(at, at + 10.0, at + 20.0, at + 610.0), windows)
    assert (tally.pushes, tally.fetches, tally.safety_polls) == (3, 3, tally.safety_polls)
    assert list(tally.delays) == pytest.approx([3.0, 293.0, 283.0, 3.0])
    seen = a_day(feed(at, at + 1.0, at + 301.0), windows)  # the first push brings both, so that the window ends in time
    assert list(seen.delays) == pytest.approx([3.0, 2.0, 3.0])


def test_resend_of_pushes_lost_in_the_background() -> None:
    tally = a_day(feed(DAY / 2 + 10.0), QUIET, dark=30.0)
    assert (tally.pushes, tally.resends, tally.fetches) == (3, 2, 1)  # after 15 s it is dark still, 30 s later not
    assert list(tally.delays) == pytest.approx([15.0 + 30.0 + 3.0])
    given_up = a_day(feed(DAY / 2 + 10.0), QUIET, dark=6 * HOUR)
    assert (given_up.pushes, given_up.resends, given_up.lost) == (5, 4, 1)


def test_resend_not_on_ios_in_the_background() -> None:
    tally = a_day(feed(DAY / 2 + 10.0), QUIET, IOS, dark=30.0)
    assert (tally.pushes, tally.resends, tally.missed) == (1, 0, 1)


def test_resend_makes_a_late_push_needless() -> None:
    tally = a_day(feed(8 * HOUR), replace(QUIET, conditions=replace(EXACT, latency_s=20.0)))
    assert (tally.pushes, tally.resends, tally.needless_resends, tally.fetches) == (2, 1, 1, 1)
    assert list(tally.delays) == pytest.approx([20.0])


def test_stream_brings_changes_in_the_foreground() -> None:
    tally = a_day(feed(8 * HOUR + 60.0, 8 * HOUR + 90.0, sessions=((8 * HOUR, 8 * HOUR + 600.0),)), QUIET)
    assert list(tally.delays) == pytest.approx([0.2, 0.2])
    assert (tally.stream_opens, tally.stream_messages, tally.pushes) == (1, 2, 0)
    unseen = replace(QUIET, conditions=replace(EXACT, watched=0.0))
    assert a_day(feed(8 * HOUR, sessions=((8 * HOUR, 8 * HOUR + 600.0),)), unseen).stream_opens == 0


def test_unreachable_device_polls_and_reach_is_not_believed() -> None:
    device = make_device(DEFAULT, 5, 3, 24, history_days=2)
    reached, unreached = a_day(device, QUIET), a_day(device, QUIET, reachable=False)
    assert unreached.polls > 4 * (reached.safety_polls + 1)
    assert unreached.fetches == unreached.safety_polls == unreached.tried == 0
    streamless = a_day(device, replace(QUIET, conditions=replace(EXACT, unreached_stream=False)), reachable=False)
    assert streamless.stream_opens == 0


def test_wakeup_budget_limits_delivered_pushes() -> None:
    channel = PushChannel(EXACT, Handset(IOS, True, ()), random.Random(1))
    sent = []
    now = 0.0
    while now < HOUR:
        free = channel.next_allowed_at(now)
        if free <= now:
            channel.send(now)
            sent.append(now)
        now = max(free, now + 1.0)
    assert len(sent) == 3 + 2  # three at once, then one each twenty minutes
    lost = PushChannel(replace(EXACT, loss=1.0), Handset(ANDROID, True, ()), random.Random(1))
    assert lost.send(0.0) is None


def test_background_polls_are_deferred_by_the_system() -> None:
    device = make_device(DEFAULT, 5, 3, 24, history_days=2)
    dozing = replace(QUIET, conditions=replace(EXACT, android_floor_s=900.0))
    held = a_day(device, dozing, reachable=False)
    assert held.polls <= DAY / 900.0 + len(device.sessions) + 1
    assert held.polls < a_day(device, QUIET, reachable=False).polls


@pytest.mark.parametrize(
    ("platform", "reachable", "floor_s", "fewest"),
    [
        (ANDROID, False, 0.0, 5000),
        (IOS, False, 0.0, 5000),
        (ANDROID, True, 0.0, 300),
        (IOS, True, 0.0, 1000),
        (ANDROID, False, 300.0, 1000),
    ],
)
def test_hybrid_waits_are_the_server_hints(
    platform: str, reachable: bool, floor_s: float, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, polls = hint.decide_interval, 0
    conditions = replace(EXACT, loss=0.1, android_floor_s=floor_s)
    settings = Settings(0.7, lateness_s=450.0, conditions=conditions, app_misses=0.01, push_misses=0.1)
    for index in range(12):
        tally = Hinted()

        def noting(*known: object, tally: Hinted = tally) -> IntervalDecision:
            found = plain(*known)  # type: ignore[arg-type]  # passed on as it came
            tally.hints.append((float(known[2]), found.interval_s))  # type: ignore[arg-type]  # the moment
            return found

        monkeypatch.setattr(hint, "decide_interval", noting)
        device = make_device(DEFAULT, 5, index, 24, history_days=2)
        HybridDay(device, Handset(platform, reachable, ()), settings, tally, random.Random(index)).run()
        due = [at + max(seconds, floor_s) for at, seconds in tally.hints]
        for number, polled_at in tally.polled:
            if number == 0:  # the day begins somewhere in a wait
                assert 0.0 <= polled_at <= due[0]
            else:
                assert polled_at == pytest.approx(due[number], abs=1e-6)
        for (at, _), (next_at, _), due_at in zip(tally.hints, tally.hints[1:], due, strict=False):
            streamed = any(at <= start + conditions.watched_after_s <= due_at for start, _ in device.sessions)
            assert streamed or next_at <= due_at + 1e-6  # no poll was left out
        asked = {0.0, *tally.moments, *(end for _, end in device.sessions)}
        assert {at for at, _ in tally.hints} <= asked  # of the moment at which it asked, or left the screen
        polls += len(tally.polled)
    assert polls > fewest


def test_fleet_sample_keeps_the_shares() -> None:
    conditions = PushConditions(reach=0.85, ios=0.3, dark=0.1)
    told = [handset(conditions, 7, index, 400) for index in range(400)]
    assert sum(one.reachable for one in told) == 340
    assert sum(one.platform == IOS for one in told) == 120
    dark = sum(min(end, DAY) - max(start, 0.0) for one in told for start, end in one.dark)
    assert dark / (400 * DAY) == pytest.approx(0.1, rel=0.15)


def test_signals_lower_the_bound_to_one_request_per_change() -> None:
    devices = [make_device(DEFAULT, 5, index, 24) for index in range(24)]
    told = [Handset(ANDROID, index >= 6, ()) for index in range(24)]
    pulled, some = poll_bound(devices), signalled_bound(devices, told, PushConditions())
    all_told = signalled_bound(devices, [Handset(ANDROID, True, ())] * 24, PushConditions())
    assert some.changes() == pytest.approx(pulled.changes())
    for mean_s in (1.0, 10.0, 60.0):
        least = [bound.least_requests(mean_s) for bound in (all_told, some, pulled)]
        assert least == sorted(least)
        assert least[0] <= pulled.changes()
    assert all_told.least_requests(0.001) == pytest.approx(pulled.changes(), rel=0.01)
