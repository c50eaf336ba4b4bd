"""Tests what a soak comes to: its last window, the whole run, and beside an earlier report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from syncbeat_devtools.soak.load.server_verdict import ServerVerdict
from syncbeat_devtools.soak.measure.recorder import Recorder
from syncbeat_devtools.soak.plan import Operation
from syncbeat_devtools.soak.report.document import Circumstances, make_document
from syncbeat_devtools.soak.verdict.compare import compare
from syncbeat_devtools.soak.verdict.judge import judge_run, judge_window, window_s, worst
from syncbeat_devtools.soak.verdict.objectives import Objectives, Verdict
from syncbeat_devtools.soak.verdict.trend import slope

pytestmark = pytest.mark.unit

AIMS = Objectives()
HOUR_S = 3_600.0


def steady(duration_s: int, *, failing: range = range(0), seconds: float = 0.01) -> Recorder:
    """Record ten polls a second, one in ten of which fails by the server's fault while it is failing."""
    recorder = Recorder()
    for second in range(duration_s):
        for number in range(10):
            if number == 0 and second in failing:
                recorder.failure(Operation.POLL, float(second), "UNAVAILABLE", is_server_fault=True)
            else:
                recorder.success(Operation.POLL, float(second), seconds)
    return recorder


def misses(recorder: Recorder, aims: Objectives = AIMS, duration_s: float = 600.0) -> dict[str, str]:
    """Return the triggers of a run that are not OK, with their verdicts."""
    found = judge_run(recorder.series, recorder.totals, aims, duration_s)
    return {one.name: one.verdict.name for one in found if one.verdict is not Verdict.OK}


def test_soak_window_is_an_hour_of_48_and_shrinks_with_the_run() -> None:
    assert window_s(48 * HOUR_S) == HOUR_S
    assert window_s(HOUR_S) == 75.0
    assert (window_s(60.0), window_s(31 * 24 * HOUR_S)) == (10.0, HOUR_S)


def test_soak_outage_turns_the_window_to_rollback_and_back_while_the_run_warns() -> None:
    recorder = Recorder()
    told = []
    for second in range(600):
        if 300 <= second < 320:
            recorder.failure(Operation.PUBLISH, float(second), "UNAVAILABLE", is_server_fault=True)
        else:
            recorder.success(Operation.PUBLISH, float(second), 0.01)
        told.append(worst(judge_window(recorder.series, AIMS, 600.0)))
        recorder.verdict(float(second), told[-1].name)
    assert [verdict for _, verdict in recorder.verdicts] == ["OK", "ROLLBACK", "OK"]
    (_, _), (began_s, _), (ended_s, _) = recorder.verdicts
    assert began_s == 300.0
    assert 320.0 < ended_s <= 320.0 + window_s(600.0) + 2.0
    assert misses(recorder) == {"unavailable_ratio": "WARN", "error_ratio": "WARN"}


def test_soak_objectives_warn_when_they_are_missed() -> None:
    assert misses(steady(600)) == {}
    assert misses(steady(600, seconds=0.06)) == {"hint_p95": "WARN"}
    assert misses(steady(600, failing=range(20))) == {"unavailable_ratio": "WARN"}
    recorder = steady(60)
    recorder.success(Operation.PUSH, 1.0, 0.3)
    recorder.totals.push_states.update({"SENT": 94, "DEAD": 6, "SUPPRESSED": 100})
    recorder.staleness(1.0, 20.0, by_stream=False)
    assert misses(recorder) == {
        "push_p95": "WARN",
        "push_not_accepted_ratio": "WARN",
        "poll_staleness_mean": "WARN",
    }
    loose = replace(AIMS, p95_s=1.0, push_accepted=0.9, staleness_s=30.0)
    assert misses(recorder, loose) == {}


def test_soak_refusals_count_as_errors_and_not_against_availability() -> None:
    recorder = steady(60)
    for _ in range(10):
        recorder.failure(Operation.PUBLISH, 1.0, "RESOURCE_EXHAUSTED RATE_LIMITED", is_server_fault=False)
    assert misses(recorder) == {"error_ratio": "WARN"}


def grown(mib_per_hour: float, hours: float) -> Recorder:
    """Record the memory of a server that grows, with a peak that goes away."""
    recorder = Recorder()
    for second in range(0, int(hours * HOUR_S), 15):
        peak = 200.0 if second % 900 == 0 else 0.0
        octets = (150.0 + peak + mib_per_hour * second / HOUR_S) * (1 << 20)
        recorder.series.at(float(second)).rss_octets = octets
    return recorder


@pytest.mark.parametrize(("mib_per_hour", "warned"), [(0.5, {}), (2.0, {"rss_slope": "WARN"})])
def test_soak_memory_that_grows_warns_whatever_its_peaks(mib_per_hour: float, warned: dict[str, str]) -> None:
    recorder = grown(mib_per_hour, 2.0)
    recorder.success(Operation.POLL, 1.0, 0.01)
    assert misses(recorder, duration_s=2 * HOUR_S) == warned


def test_soak_memory_of_a_short_run_is_not_judged() -> None:
    recorder = grown(100.0, 0.2)
    recorder.success(Operation.POLL, 1.0, 0.01)
    assert misses(recorder, duration_s=0.2 * HOUR_S) == {}


def test_soak_without_a_call_warns() -> None:
    assert misses(Recorder()) == {"no_calls": "WARN"}


def test_soak_slope_is_the_median_of_all_pairs() -> None:
    assert slope([(0.0, 0.0), (1.0, 1.0)]) is None
    assert slope([(0.0, 5.0), (1.0, 7.0), (2.0, 9.0), (3.0, 900.0), (4.0, 13.0)]) == pytest.approx(2.0)


def document(recorder: Recorder, *, server: ServerVerdict | None = None, **more: Any) -> dict[str, Any]:
    about = Circumstances("1", "host:1", {"duration_s": 60.0}, "then", "now", 60.0, 1)
    return make_document(recorder, AIMS, about, server or ServerVerdict(None, "UNIMPLEMENTED"), **more)


def with_cpu(recorder: Recorder, cpu_s: float) -> Recorder:
    recorder.series.at(1.0).cpu_s = cpu_s
    return recorder


def test_soak_warns_when_p95_or_cpu_is_a_quarter_over_an_earlier_report() -> None:
    earlier = document(with_cpu(steady(60), 0.6))
    same = document(with_cpu(steady(60), 0.7), earlier=earlier)
    assert (same["verdict"], same["server"]["cpu_s_per_call"]) == ("OK", pytest.approx(0.7 / 600))
    slower = document(with_cpu(steady(60, seconds=0.02), 0.9), earlier=earlier)
    assert slower["verdict"] == "WARN"
    warned = {one["name"] for one in slower["triggers"] if one["verdict"] == "WARN"}
    assert warned == {"poll_p95_over_earlier", "cpu_per_call_over_earlier"}
    few = document(steady(3, seconds=0.02))
    assert compare(few, earlier, AIMS) == []


def test_soak_verdict_is_the_worst_of_its_own_and_the_servers() -> None:
    rollback = ServerVerdict(Verdict.ROLLBACK)
    assert document(steady(60))["verdict"] == "OK"
    heeded = document(steady(60), server=rollback)
    assert (heeded["verdict"], heeded["own_verdict"], heeded["server"]["verdict"]) == ("ROLLBACK", "OK", "ROLLBACK")
    ignored = document(steady(60), server=rollback, heed_server=False)
    assert (ignored["verdict"], ignored["server"]["verdict"]) == ("OK", "ROLLBACK")
    failing = document(steady(60, failing=range(60)), server=ServerVerdict(Verdict.OK))
    assert failing["verdict"] == "ROLLBACK"


def test_soak_error_budget_is_spent_by_faults() -> None:
    found = document(steady(60, failing=range(30, 33)))
    budgets = [point["error_budget_remaining"] for point in found["series"]["points"]]
    assert budgets[0] == 1.0
    assert found["error_budget_remaining"] == budgets[-1] == pytest.approx(1 - 3 / 0.6)
