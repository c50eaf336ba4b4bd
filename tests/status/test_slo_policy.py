"""Tests the arithmetic of objectives: budgets, burn rates, windows and what figures come to."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.ops.metrics.rpc import CALL_SECONDS, CallCounts
from syncbeat_server.rpc.server import CONTRACT
from syncbeat_server.status.model import (
    Counted,
    Figure,
    FigureRule,
    Goals,
    Objective,
    Series,
    Sums,
    Trigger,
    Verdict,
    Workload,
)
from syncbeat_server.status.policy.method_figures import OUR_FAULT, quantile
from syncbeat_server.status.policy.objectives import (
    STREAMS,
    burn_rate,
    call_amounts,
    counted,
    objective_status,
    push_amounts,
    within,
    workload,
)
from syncbeat_server.status.policy.slo_triggers import Evidence, growth_triggers, judged, triggers, worst
from syncbeat_server.status.policy.slo_windows import BURN_PAIRS, SloTimes, Span, difference, total
from tests.support.fake_clock import START

pytestmark = [pytest.mark.unit, pytest.mark.hypothesis]

GOALS, TIMES = Goals(), SloTimes()
counts = st.integers(0, 10**12).map(float)
shares = st.floats(0.5, 0.99999)
histograms = st.lists(st.integers(0, 10**6), min_size=len(CALL_SECONDS) + 1, max_size=len(CALL_SECONDS) + 1)
sums = st.dictionaries(st.sampled_from(list(Series)), st.lists(counts, min_size=3, max_size=3).map(tuple))


def calls(good: float, bad: float) -> Sums:
    """Counts of calls, of which some failed and were not answered."""
    return {Series.CALLS: (good + bad, bad, bad)}


def evidence(everywhere: Sums, **fields: object) -> Evidence:
    return Evidence(dict.fromkeys(Span, everywhere), everywhere, 3_600.0, **fields)  # type: ignore[arg-type]  # a test's own fields


def found(of: Evidence, *rules: FigureRule) -> dict[str, Trigger]:
    return {one.name: one for one in triggers(of, GOALS, rules, TIMES, CALL_SECONDS)}


@given(counts, counts, shares)
def test_burn_rate_is_one_where_the_budget_is_just_spent(good: float, bad: float, goal: float) -> None:
    events = Counted(good, bad)
    rate = burn_rate(events, goal)
    assert rate >= 0.0
    assert burn_rate(Counted(goal, 1.0 - goal), goal) == pytest.approx(1.0)
    assert burn_rate(Counted(good, bad * 2), goal) >= rate
    assert burn_rate(Counted(good * 2, bad), goal) <= rate
    assert burn_rate(Counted(0.0, 0.0), goal) == 0.0


@given(counts, counts)
def test_budget_left_is_one_less_what_was_spent(good: float, bad: float) -> None:
    status = objective_status(Objective.AVAILABILITY, calls(good, bad), GOALS, CALL_SECONDS)
    assert status.budget_left <= 1.0
    assert (status.budget_left == 1.0) == (status.actual == 1.0)
    allowed = 1.0 - GOALS.availability
    assert status.budget_left == pytest.approx(1.0 - (1.0 - status.actual) / allowed, abs=1e-6)
    assert (status.budget_left >= -1e-6) == (1.0 - status.actual <= allowed * (1.0 + 1e-6))


@given(sums)
def test_every_objective_counts_within_its_events(of: Sums) -> None:
    for objective in Objective:
        events = counted(objective, of, GOALS, CALL_SECONDS)
        assert min(events.good, events.bad) >= 0.0
        assert 0.0 <= events.bad_share <= 1.0


@given(histograms, st.floats(0.0, 20.0), st.floats(0.0, 20.0))
def test_calls_within_a_limit_grow_with_it(buckets: list[int], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0.0 <= within(CALL_SECONDS, buckets, low) <= within(CALL_SECONDS, buckets, high) + 1e-6
    assert within(CALL_SECONDS, buckets, high) <= sum(buckets)
    assert within(CALL_SECONDS, buckets, 0.05) == sum(buckets[:7]), "0.05 s is a bound: nothing is estimated"


@given(histograms.filter(any))
def test_p95_and_calls_within_it_agree(buckets: list[int]) -> None:
    p95_s = quantile(CALL_SECONDS, buckets, 0.95)
    if p95_s < CALL_SECONDS[-1]:
        assert within(CALL_SECONDS, buckets, p95_s) == pytest.approx(0.95 * sum(buckets), rel=1e-6, abs=1e-6)


@given(sums, sums)
def test_difference_is_what_has_to_be_added(before: Sums, growth: Sums) -> None:
    now = total(before, growth)
    again = total(before, difference(before, now))
    for series, amounts in now.items():
        assert again.get(series, (0.0,) * len(amounts)) == pytest.approx(amounts, rel=1e-9, abs=1e-3)
    assert difference(now, now) == {}
    assert difference(now, {}) == {}, "counters that are gone have not grown"
    assert total(before, growth) == total(growth, before)


@given(st.floats(0.001, 1.0))
def test_windows_scale_together_and_their_buckets_are_kept(scale: float) -> None:
    times = SloTimes(scale)
    kept = dict(times.kept_s)
    for span in Span:
        window = times.window(span)
        assert window.seconds == pytest.approx(SloTimes().seconds(span) * scale)
        assert kept[window.width_s] >= window.seconds + window.width_s
        assert window.holds(0.0)
        assert window.holds(window.seconds)
        assert not window.holds(window.seconds + window.width_s)
    assert 1.0 <= times.tick_s <= times.short_s <= times.long_s


def test_burn_pairs_are_those_of_the_workbook() -> None:
    told = [
        (pair.factor, TIMES.seconds(pair.long) / 3_600, TIMES.seconds(pair.short) / 60, pair.pages)
        for pair in BURN_PAIRS
    ]
    assert told == [(14.4, 1.0, 5.0, True), (6.0, 6.0, 30.0, True), (1.0, 72.0, 360.0, False)]
    # The share of 30 days' budget that each spends until it is told: 2 %, 5 % and 10 %.
    spent = [pair.factor * TIMES.seconds(pair.long) / TIMES.seconds(Span.BUDGET) for pair in BURN_PAIRS]
    assert spent == pytest.approx([0.02, 0.05, 0.10])


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.0, Verdict.OK), (0.0049, Verdict.OK), (0.0051, Verdict.WARN), (0.0201, Verdict.ROLLBACK)]
)
def test_errors_come_to_rollback_above_two_percent(share: float, verdict: Verdict) -> None:
    assert found(evidence(calls(1e6 * (1 - share), 1e6 * share)))["errors"].verdict is verdict


def test_few_events_are_told_and_come_to_nothing() -> None:
    few, enough = found(evidence(calls(90, 9))), found(evidence(calls(91, 9)))
    assert few["errors"].value == pytest.approx(9 / 99)
    assert few["errors"].verdict is Verdict.OK
    assert worst(few.values()) is Verdict.OK
    assert enough["errors"].verdict is enough["availability_fast_burn"].verdict is Verdict.ROLLBACK


@pytest.mark.parametrize(
    ("rate", "fast", "medium", "slow"),
    [
        (0.9, Verdict.OK, Verdict.OK, Verdict.OK),
        (1.1, Verdict.OK, Verdict.OK, Verdict.WARN),
        (6.1, Verdict.OK, Verdict.ROLLBACK, Verdict.WARN),
        (14.5, Verdict.ROLLBACK, Verdict.ROLLBACK, Verdict.WARN),
    ],
)
def test_burn_rates_come_to_a_verdict(rate: float, fast: Verdict, medium: Verdict, slow: Verdict) -> None:
    bad = rate * 0.001
    told = found(evidence(calls(1e6 * (1 - bad), 1e6 * bad)))
    verdicts = [told[f"availability_{name}"].verdict for name in ("fast_burn", "medium_burn", "slow_burn")]
    assert verdicts == [fast, medium, slow]
    assert told["availability_fast_burn"].value == pytest.approx(rate)


def test_burn_needs_both_windows() -> None:
    burning, quiet = calls(9_000, 1_000), calls(10_000, 0)
    spans = dict.fromkeys(Span, burning) | {Span.FIVE_MINUTES: quiet}
    told = found(Evidence(spans, quiet, 3_600.0))
    assert told["availability_fast_burn"].verdict is Verdict.OK, "it burns no longer"
    assert told["availability_medium_burn"].verdict is Verdict.ROLLBACK


@pytest.mark.parametrize(
    ("used", "now", "half_hour"),
    [(0.8, Verdict.OK, Verdict.OK), (0.81, Verdict.WARN, Verdict.WARN), (0.91, Verdict.WARN, Verdict.ROLLBACK)],
)
def test_pool_warns_above_80_percent_and_rolls_back_above_90_for_half_an_hour(
    used: float, now: Verdict, half_hour: Verdict
) -> None:
    told = found(evidence({Series.POOL: (800 * used, 800.0)}))
    assert (told["pool"].verdict, told["pool_sustained"].verdict) == (now, half_hour)


def test_database_latency_and_deadlocks() -> None:
    told = found(evidence({Series.DATABASE: (100.0, 50.1), Series.DEADLOCKS: (1.0,)}))
    assert told["database_latency"].value == pytest.approx(0.501)
    assert told["database_latency"].verdict is Verdict.WARN
    assert told["database_latency_sustained"].verdict is Verdict.ROLLBACK
    assert told["deadlocks"].verdict is Verdict.WARN
    assert found(evidence({Series.DEADLOCKS: (11.0,)}))["deadlocks"].verdict is Verdict.ROLLBACK


def test_pushes_and_freshness_that_fall_below_their_objective() -> None:
    warned = found(evidence({Series.PUSH: (940.0, 60.0), Series.STALENESS: (890.0, 110.0)}))
    assert (warned["push_accepted"].value, warned["push_accepted"].verdict) == (0.94, Verdict.WARN)
    assert warned["staleness"].verdict is Verdict.ROLLBACK
    assert found(evidence({Series.PUSH: (951.0, 49.0)}))["push_accepted"].verdict is Verdict.OK


def test_sync_failures_have_a_trigger_of_their_own() -> None:
    told = found(evidence({Series.CALLS: (10_000.0, 0.0, 30.0), Series.SYNC_CALLS: (1_000.0, 30.0)}))
    assert (told["errors"].verdict, told["sync_failures"].verdict) == (Verdict.OK, Verdict.ROLLBACK)


def test_figures_from_outside_go_either_way() -> None:
    rules = (FigureRule("complaints", 5.0, 20.0), FigureRule("score", 4.0, 3.5), FigureRule("unknown", 1.0, 2.0))

    def told(complaints: float, score: float) -> list[Verdict]:
        figures = [Figure("complaints", complaints, START), Figure("score", score, START), Figure("old", 99.0, START)]
        by_name = found(evidence({}, figures=figures), *rules)
        assert not by_name.keys() & {"unknown", "old"}
        return [by_name[name].verdict for name in ("complaints", "score")]

    assert told(5.0, 4.0) == [Verdict.OK, Verdict.OK]
    assert told(6.0, 3.9) == [Verdict.WARN, Verdict.WARN]
    assert told(21.0, 3.4) == [Verdict.ROLLBACK, Verdict.ROLLBACK]


def test_database_that_does_not_answer_rolls_back() -> None:
    told = found(evidence({}, database_down=True))
    assert told["database_down"].verdict is worst(told.values()) is Verdict.ROLLBACK
    assert worst(found(evidence({})).values()) is Verdict.OK
    assert worst([]) is Verdict.OK


@given(st.floats(-1e9, 1e9), st.floats(-1e6, 1e6), st.floats(0.0, 1e6), st.booleans(), st.floats(0.0, 1e6))
def test_verdicts_only_get_worse_with_the_figure(
    value: float, warn: float, gap: float, falling: bool, further: float
) -> None:
    sign = -1.0 if falling else 1.0
    rollback = warn + sign * max(gap, 1e-3)
    order = list(Verdict)
    one, worse = (
        judged(Trigger("x", figure, warn, rollback, "")).verdict for figure in (value, value + sign * further)
    )
    assert order.index(worse) >= order.index(one)
    assert judged(Trigger("x", value, warn, math.inf, "")).verdict is not Verdict.ROLLBACK


def test_growth_over_an_earlier_report_warns_above_25_percent() -> None:
    earlier = Workload(1_000, 0, 500, hint_p95_s=0.010, call_p95_s=0.100, cpu_calls=1_000, cpu_s_per_call=0.001)
    now = Workload(1_000, 0, 500, hint_p95_s=0.0126, call_p95_s=0.124, cpu_calls=1_000, cpu_s_per_call=0.0013)
    told = {one.name: one.verdict for one in growth_triggers(now, earlier, 100)}
    assert told == {"hint_p95_growth": Verdict.WARN, "call_p95_growth": Verdict.OK, "cpu_growth": Verdict.WARN}
    assert {one.verdict for one in growth_triggers(now, earlier, 501)} == {Verdict.OK, Verdict.WARN}
    assert growth_triggers(now, Workload(), 100) == ()


def test_calls_are_counted_by_what_became_of_them() -> None:
    codes = Counter({"OK": 5, "NOT_FOUND": 1, "UNAVAILABLE": 2, "INTERNAL": 1, "RESOURCE_EXHAUSTED": 1})
    hint = CallCounts(codes, (10, *(0,) * 14), overloaded=1)
    stream = CallCounts({"OK": 1}, (*(0,) * 14, 1))
    other = CallCounts({"DEADLINE_EXCEEDED": 3}, (0, 3, *(0,) * 13), excused=2)
    methods = {
        "syncbeat.v1.SyncService/GetHint": hint,
        "syncbeat.v1.SyncService/WatchHints": stream,
        "syncbeat.v1.PushService/SendNotification": other,
        "grpc.health.v1.Health/Check": hint,
    }
    found = call_amounts(methods)
    assert found[Series.CALLS] == (14.0, 4.0, 4.0)
    assert found[Series.SYNC_CALLS] == (11.0, 3.0)
    assert (sum(found[Series.HINT_SECONDS]), sum(found[Series.CALL_SECONDS])) == (10.0, 13.0)
    assert workload(found, CALL_SECONDS).hints == 10
    assert {"UNAVAILABLE", "DEADLINE_EXCEEDED"} <= OUR_FAULT
    assert call_amounts({})[Series.CALL_SECONDS] == ()


def test_streams_are_those_of_the_contract() -> None:
    streaming = {
        f"{method.containing_service.full_name}/{method.name}"
        for service in CONTRACT
        for method in service.methods
        if method.server_streaming
    }
    assert streaming == STREAMS


def test_attempts_to_dead_tokens_are_not_eligible() -> None:
    outcomes = {"SENT": 95.0, "UNREGISTERED": 40.0, "REJECTED": 3.0, "UNAVAILABLE": 4.0, "THROTTLED": 1.0}
    assert push_amounts(outcomes) == {Series.PUSH: (95.0, 5.0)}
