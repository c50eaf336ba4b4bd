"""From an app's settings to its target; from what was counted to what operators read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from syncbeat_server.app.tuning import goal_of
from syncbeat_server.defaults import SchedulingPolicy
from syncbeat_server.ops.metrics import Metrics
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.sync.policy.interval import Bounds
from syncbeat_server.sync.policy.price_controller import Target, TargetKind
from syncbeat_server.sync.policy.staleness import Staleness
from syncbeat_server.sync.tuning.app_counters import INTERVALS_S, STALENESS_S, AppCounters
from syncbeat_server.sync.tuning.price_updates import TuningGoal

pytestmark = pytest.mark.unit

MEAN, P95, BUDGET = TargetKind.MEAN, TargetKind.P95, TargetKind.BUDGET


@pytest.mark.parametrize(
    ("settings", "aim"),
    [
        (AppSettings(), TuningGoal(Target(MEAN, 15.0), Bounds(5.0, 75.0))),
        (AppSettings(staleness_target_s=40.0), TuningGoal(Target(MEAN, 40.0), Bounds(5.0, 200.0))),
        (AppSettings(staleness_target_s=10_000.0), TuningGoal(Target(MEAN, 10_000.0), Bounds(5.0, 14_400.0))),
        (AppSettings(staleness_p95_s=30.0), TuningGoal(Target(P95, 30.0), Bounds(5.0, 120.0))),
        (AppSettings(requests_per_day=5_000), TuningGoal(Target(BUDGET, 5_000.0), Bounds(5.0, 14_400.0))),
        (AppSettings(poll_floor_s=10.0, poll_cap_s=3_600.0), TuningGoal(Target(MEAN, 15.0), Bounds(10.0, 3_600.0))),
        (
            AppSettings(policy=SchedulingPolicy.TIER_TABLE),
            TuningGoal(Target(MEAN, 15.0), Bounds(5.0, 75.0), SchedulingPolicy.TIER_TABLE),
        ),
    ],
)
def test_tuning_target_is_read_from_settings(settings: AppSettings, aim: TuningGoal) -> None:
    assert goal_of(settings) == aim


def test_policy_of_every_name_can_be_chosen() -> None:
    chosen = {goal_of(AppSettings.model_validate({"policy": name.value})).policy for name in SchedulingPolicy}
    assert chosen == {"adaptive", "sqrt-ewma", "tier-table", "fixed-30s"}


def test_tuning_metrics_are_shown_by_app() -> None:
    tally = AppCounters()
    for interval_s in (8.0, 10.0, 20.0, 120.0, 9_999.0, 99_999.0):
        tally.count_hint(interval_s)
    tally.count_staleness(Staleness(3.0, 30.0, 0.0), 4.0, 16.0, 1.0, mostly_polled=True)
    tally.count_served_poll(600.0, 0.01, mostly_polled=True)
    tally.tick(30.0)
    metrics = Metrics()
    tiers = {"IMMEDIATE": 10.0, "FAST": 30.0, "NORMAL": 120.0, "SLOW": float("inf")}
    metrics.sync.watch_apps(lambda: {"shop": tally}, STALENESS_S, INTERVALS_S, tiers)

    def read(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"app": "shop", **labels})

    assert read("syncbeat_sync_interval_seconds_count") == 6
    assert read("syncbeat_sync_interval_seconds_bucket", le="30.0") == 3
    assert {tier: read("syncbeat_sync_hints_total", tier=tier) for tier in tiers} == {
        "IMMEDIATE": 2,
        "FAST": 1,
        "NORMAL": 1,
        "SLOW": 2,
    }
    assert read("syncbeat_sync_staleness_seconds_count") == pytest.approx(3)
    assert read("syncbeat_sync_staleness_seconds_sum") == 30.0
    assert read("syncbeat_sync_staleness_seconds_bucket", le="10.0") == pytest.approx(1 + 2 * 6 / 12)
    assert read("syncbeat_sync_requests_total") == 6
    assert read("syncbeat_sync_capped_polls_total") == 0
    tally.count_bounded_poll(75.0, 75.0, Bounds(5.0, 75.0))
    assert read("syncbeat_sync_capped_polls_total") == 1
    assert read("syncbeat_sync_requests_avoided_total") == 19
    assert read("syncbeat_sync_optimality_ratio") is None  # three changes prove nothing
    for _ in range(100):
        tally.count_served_poll(20.0, 0.01, mostly_polled=True)
        tally.count_staleness(Staleness(1.0, 10.0, 0.0), 10.0, 10.0, 1.0, mostly_polled=True)
    tally.tick(30.0)
    assert 0.5 < (read("syncbeat_sync_optimality_ratio") or 0.0) < 1.5


def test_numpy_is_loaded_by_the_fitting_child_only() -> None:
    looked = (
        "import sys, syncbeat_server.app.serving, syncbeat_server.rpc.servicers.sync; sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", looked], check=False, timeout=60).returncode == 0
