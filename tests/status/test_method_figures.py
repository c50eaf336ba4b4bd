"""Tests rates, errors and percentiles of calls between two readings of their counts."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.ops.metrics.rpc import CALL_SECONDS, CallCounts, RpcMetrics
from syncbeat_server.status.policy.method_figures import method_figures, quantile

pytestmark = pytest.mark.unit

BOUNDS = (0.01, 0.1, 1.0)
HINT, PUBLISH = "syncbeat.v1.SyncService/GetHint", "syncbeat.v1.SyncService/PublishChanges"


def counts(buckets: tuple[int, ...], **codes: int) -> CallCounts:
    return CallCounts(codes, buckets)


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ((0, 0, 0, 0), 0.5, 0.0),
        ((10, 0, 0, 0), 0.5, 0.005),  # the fifth of ten, spread evenly over the bucket
        ((10, 0, 0, 0), 1.0, 0.01),
        ((50, 50, 0, 0), 0.5, 0.01),
        ((50, 50, 0, 0), 0.75, 0.055),
        ((0, 0, 1, 0), 0.99, 0.1 + 0.99 * 0.9),
        ((1, 0, 0, 99), 0.95, 1.0),  # above the last bound: told as that
        ((99, 0, 0, 1), 0.99, 0.01),
    ],
)
def test_quantile_is_interpolated_within_its_bucket(buckets: tuple[int, ...], share: float, expected: float) -> None:
    assert quantile(BOUNDS, buckets, share) == pytest.approx(expected)


def figures(before: Mapping[str, CallCounts], now: Mapping[str, CallCounts], most: int = 10) -> dict[str, object]:
    return {one.method: one for one in method_figures(BOUNDS, before, now, 10.0, most)}


def test_method_figures_are_of_the_window_alone() -> None:
    before = {HINT: counts((1_000, 0, 0, 0), OK=900, INTERNAL=100)}
    now = {HINT: counts((1_000, 20, 0, 0), OK=915, INTERNAL=101, NOT_FOUND=4), PUBLISH: counts((5, 0, 0, 0), OK=5)}
    found = method_figures(BOUNDS, before, now, 10.0, 10)
    hint, publish = found
    assert (hint.method, hint.calls, hint.errors, hint.rate) == (HINT, 20, 1, 2.0)
    assert 0.01 < hint.p50_s < hint.p95_s < hint.p99_s <= 0.1
    assert (publish.method, publish.calls, publish.errors, publish.rate) == (PUBLISH, 5, 0, 0.5)


def test_method_figures_leave_out_what_was_not_called() -> None:
    same = {HINT: counts((7, 0, 0, 0), OK=7)}
    assert figures(same, same) == {}


def test_method_figures_keep_the_most_called_methods() -> None:
    now = {f"m{number}": counts((number, 0, 0, 0), OK=number) for number in range(1, 10)}
    assert list(figures({}, now, most=3)) == ["m7", "m8", "m9"]


@pytest.mark.parametrize(
    ("code", "is_ours"),
    [
        ("OK", False),
        ("NOT_FOUND", False),
        ("RESOURCE_EXHAUSTED", False),
        ("CANCELLED", False),
        ("UNAUTHENTICATED", False),
    ]
    + [(code, True) for code in ("UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS")],
)
def test_errors_are_those_by_our_fault(code: str, is_ours: bool) -> None:
    (found,) = method_figures(BOUNDS, {}, {HINT: counts((1, 0, 0, 0), **{code: 1})}, 10.0, 10)
    assert found.errors == int(is_ours)


def test_call_counts_of_the_metrics_fit_their_bounds() -> None:
    metrics: RpcMetrics = Metrics().rpc
    metrics.counter("syncbeat.v1.OpsService", "Never")  # was not called
    record = metrics.counter("syncbeat.v1.SyncService", "GetHint")
    for seconds in (0.0001, 0.0015, 99.0):
        record("OK", seconds)
    ((method, found),) = metrics.counts().items()
    assert method == HINT
    assert len(found.buckets) == len(CALL_SECONDS) + 1 <= 16  # four comparisons a call
    assert (sum(found.buckets), found.buckets[0], found.buckets[-1], found.codes) == (3, 1, 1, {"OK": 3})
    record("OK", 1.0)
    assert sum(found.buckets) == 3, "a reading stays as it was"
