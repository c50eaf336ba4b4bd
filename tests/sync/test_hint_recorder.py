"""Tests that measurements are counted as they were: delays, bounds, what fixed polling would have asked."""

from __future__ import annotations

import pytest

from syncbeat_server.sync.model import Cursor, DeviceKey, Hint, Priority, ScopeState, Signal, Windows
from syncbeat_server.sync.policy.hint_inputs import DEFAULT_TUNING
from syncbeat_server.sync.policy.price_state import Sums
from syncbeat_server.sync.policy.staleness import Staleness
from syncbeat_server.sync.tuning.app_counters import INTERVALS_S, STALENESS_S, AppCounters
from syncbeat_server.sync.tuning.hint_recorder import HintRecorder, sampled

pytestmark = pytest.mark.unit

APP = "default"
PHONE = DeviceKey(APP, "ann", "phone")
T0 = 1_900_000_000.0


def recorder() -> HintRecorder:
    return HintRecorder(lambda app_id: DEFAULT_TUNING._replace(late_s=30.0))


def hint(
    interval_s: float = 20.0,
    *,
    changed: bool = True,
    attention: float = 1.0,
    residual: float = 1.0,
    stretch: float = 1.0,
) -> Hint:
    return Hint(
        interval_s * stretch,
        Priority.FAST,
        T0,
        changed,
        (),
        prefer_stream=False,
        valid_s=300.0,
        unpaced_s=interval_s,
        attention=attention,
        residual=residual,
        rate_per_s=0.01,
    )


def state(head: int, changed_at: float, scope: str = "s") -> ScopeState:
    return ScopeState(scope, "e", head, Signal(None, Windows(0.0, 0.0, changed_at, T0)))


def poll(
    recorder: HintRecorder, at: float, states: list[ScopeState], shows: int | None, given: Hint | None = None
) -> None:
    cursors = [] if shows is None else [Cursor(one.scope, "e", shows) for one in states]
    recorder.record_poll(PHONE, T0 + at, given or hint(), {one.scope: one for one in states}, cursors)


def test_hint_recorder_counts_changes_with_their_delay() -> None:
    counted = recorder()
    poll(counted, 0.0, [state(1, T0 - 5)], 1, hint(changed=False))
    poll(counted, 20.0, [state(4, T0 + 14), state(2, T0 + 10, "t")], 1)
    tally = counted.counters[APP]
    # Of three changes of one scope the newest is 6 s old, the others 13 s in expectation; one of the other is 10 s old.
    assert tally.sums() == Sums(changes=4.0, stale_s=6 + 2 * 13 + 10, polls=2, requests=2)
    assert sum(tally.staleness) == 4.0
    assert tally.staleness_sum == 42.0
    assert sum(tally.intervals) == 2
    at_10, at_15, at_30 = (STALENESS_S.index(bound) for bound in (10.0, 15.0, 30.0))
    assert tally.staleness[at_10] == pytest.approx(2 + 2 * 4 / 14)
    assert tally.staleness[at_15] == pytest.approx(2 * 5 / 14)
    assert tally.staleness[at_30] == pytest.approx(2 * 5 / 14)


def test_hint_recorder_counts_a_duplicate_scope_once() -> None:
    counted = recorder()
    poll(counted, 0.0, [state(1, T0 - 5)], 1, hint(changed=False))
    poll(counted, 20.0, [state(2, T0 + 14), state(2, T0 + 14)], 1)
    assert counted.counters[APP].sums() == Sums(changes=1.0, stale_s=6.0, polls=2, requests=2)


def test_hint_recorder_weighs_by_attention() -> None:
    counted = recorder()
    poll(counted, 0.0, [state(1, T0 - 5)], 1, hint(attention=0.25))
    poll(counted, 20.0, [state(2, T0 + 10)], 1)
    assert counted.counters[APP].sums() == Sums(changes=0.25, stale_s=2.5, polls=1, requests=2)
    assert sum(counted.counters[APP].staleness) == 1.0


def test_hint_recorder_skips_a_device_that_was_away() -> None:
    counted = recorder()
    poll(counted, 0.0, [state(1, T0 - 5)], 1)
    poll(counted, 34.0, [state(2, T0 + 1)], 1)  # a little late: 33 s is what its user met
    assert counted.counters[APP].sums().stale_s == 33.0
    poll(counted, 36.0 + 3_600.0, [state(9, T0 + 40)], 2)
    assert counted.counters[APP].sums().changes == 1.0
    poll(counted, 30.0, [state(9, T0 + 40)], 2)  # a clock that goes back
    assert counted.counters[APP].sums().changes == 1.0


def test_hint_recorder_skips_a_device_seen_elsewhere() -> None:
    counted = recorder()
    poll(counted, 0.0, [state(5, T0 - 1)], 1)
    assert counted.counters[APP].sums() == Sums(polls=1, requests=1)


def test_hint_recorder_counts_news_once() -> None:
    counted = recorder()
    poll(counted, 0.0, [state(1, T0 - 5)], 1)
    poll(counted, 20.0, [state(2, T0 + 10)], 1)
    poll(counted, 25.0, [state(2, T0 + 10)], 1)
    counted.record_fetch(PHONE, T0 + 26, [T0 + 10])
    assert counted.counters[APP].sums() == Sums(changes=1.0, stale_s=10.0, polls=3, requests=4)
    counted.record_fetch(PHONE, T0 + 30, [T0 + 10, T0 + 28])  # one came after its last poll
    assert counted.counters[APP].sums().stale_s == 12.0


def test_hint_recorder_weighs_non_fetching_devices_equally() -> None:
    counted = recorder()
    poll(counted, 0.0, [state(1_000, T0 - 5)], 1, hint()._replace(heads=(Cursor("s", "e", 1_000),)))
    poll(counted, 20.0, [state(1_001, T0 + 10)], 1)
    assert counted.counters[APP].sums() == Sums(changes=1.0, stale_s=10.0, polls=2, requests=2)


def test_hint_recorder_measures_feed_readers() -> None:
    counted = recorder()
    counted.record_fetch(PHONE, T0, [T0 - 7_200.0, T0 - 40.0, T0 - 3.0])  # two hours ago it was away
    assert counted.counters[APP].sums() == Sums(changes=2.0, stale_s=43.0, late=1.0, requests=1)


def test_hint_recorder_counts_requests_without_cursors() -> None:
    counted = recorder()
    poll(counted, 0.0, [state(1, T0 - 5)], None)
    poll(counted, 20.0, [state(2, T0 + 10)], None)
    assert counted.counters[APP].sums() == Sums(requests=2)


def test_hint_recorder_counts_intervals_at_their_bounds() -> None:
    counted = recorder()
    for at, given in enumerate(
        (
            hint(5.0),
            hint(5.0, stretch=1.1),  # a quieter moment
            hint(75.0),
            hint(75.0, stretch=0.9),
            hint(30.0),
            hint(30.0, stretch=3.0),  # under load: no price makes it shorter
            hint(600.0, attention=0.05),  # nobody looks: its cap is another
            hint(7_200.0, residual=0.01),  # pushes reach it
        )
    ):
        poll(counted, float(at), [state(1, T0 - 5)], 1, given)
    sums = counted.counters[APP].sums()
    assert (sums.polls, sums.floored, sums.capped) == (6, 3, 2)
    assert counted.counters[APP].intervals[INTERVALS_S.index(5.0)] == 1


def test_hint_recorder_measures_streams_exactly() -> None:
    counted = recorder()
    counted.record_streamed_changes(APP, T0, [T0 - 0.05, T0 - 0.05, T0 - 45.0])
    sums = counted.counters[APP].sums()
    assert (sums.changes, sums.late, sums.requests) == (3.0, 1.0, 0)
    assert counted.counters[APP].staleness[0] == 2.0


def test_hint_recorder_requests_avoided_versus_fixed_polling() -> None:
    counted = recorder()
    for at in range(0, 3_601, 60):
        poll(counted, float(at), [state(1, T0 - 5)], 1, hint(60.0, changed=False))
    counted.record_stream_time({APP: 3}, 600.0)
    tally = counted.counters[APP]
    tally.tick(30.0)
    assert tally.avoided == 3_600 / 30 - 60 + 3 * 600 / 30
    tally.tick(30.0)
    assert tally.avoided == 120.0
    for at in range(3_600, 4_201, 10):  # busier than fixed polling for a while: a counter does not go back
        poll(counted, float(at), [state(1, T0 - 5)], 1, hint(10.0, changed=False))
    tally.tick(30.0)
    assert tally.avoided == 120.0


@pytest.mark.parametrize(("power", "ratio"), [(0.5, 1.0), (0.0, 121 / 202), (1.0, 121 / 202)])
def test_square_root_law_is_optimal_and_others_are_not(power: float, ratio: float) -> None:
    # Of two devices one changes 100 times as often. Polls alike for both cost as much too many as polls by their rates.
    tally = AppCounters()
    for rate in (1 / 50, 1 / 5_000):
        wait_s = 20.0 * (rate * 500) ** -power
        for _ in range(int(200_000 / wait_s)):
            tally.count_served_poll(wait_s, rate, mostly_polled=True)
            tally.count_staleness(
                Staleness(rate * wait_s, rate * wait_s**2 / 2, 0.0), 0.0, 0.0, 1.0, mostly_polled=True
            )
    tally.tick(30.0)
    assert tally.optimality == pytest.approx(ratio, rel=0.01)


def test_hint_recorder_ratio_needs_evidence() -> None:
    tally = AppCounters()
    tally.tick(30.0)
    assert tally.optimality is None


def test_hint_recorder_samples_are_bounded() -> None:
    counted = recorder()
    for number in range(2_500):
        counted.record_change(APP, f"scope-{number}", T0 + number)
    counted.record_change("other", "s", T0)
    taken = counted.take_samples()
    assert {app_id: len(samples) for app_id, samples in taken.items()} == {APP: 2_000, "other": 1}
    assert counted.take_overflowed() == [APP]
    assert counted.take_overflowed() == []
    assert counted.take_samples() == {}


def test_hint_recorder_samples_the_same_scopes() -> None:
    counted = recorder()
    counted.sample_shares = {APP: 0.25}
    for number in range(1_000):
        counted.record_change(APP, f"scope-{number}", T0)
    taken = {scope for scope, _ in counted.take_samples()[APP]}
    assert 200 < len(taken) < 300
    assert taken == {f"scope-{number}" for number in range(1_000) if sampled(f"scope-{number}", 0.25)}
    assert {scope for scope in taken if sampled(scope, 0.1)} < taken


def test_hint_recorder_device_memory_is_bounded() -> None:
    counted = recorder()
    for number in range(60_000):
        device = DeviceKey(APP, "ann", str(number))
        counted.record_poll(device, T0, hint(changed=False), {}, [Cursor("s", "e", 1)])
    assert len(counted._polls) + len(counted._older) <= 50_000
    newest, oldest = DeviceKey(APP, "ann", "59999"), DeviceKey(APP, "ann", "0")
    for device in (newest, oldest):
        counted.record_poll(device, T0 + 20, hint(), {"s": state(2, T0 + 10)}, [Cursor("s", "e", 1)])
    assert counted.counters[APP].sums().changes == 1.0  # of the oldest nothing is known any more
