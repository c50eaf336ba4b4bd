"""Wires the tuning of hints: the targets of the apps' settings, and the tasks that adjust hints to them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from syncbeat_server.app.operations.slo import count_staleness
from syncbeat_server.app.process import Process
from syncbeat_server.defaults import TARGET_STALENESS_S
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.sync.model import Priority
from syncbeat_server.sync.policy.hint import TIER_S
from syncbeat_server.sync.policy.interval import Bounds
from syncbeat_server.sync.policy.price_controller import Target, TargetKind
from syncbeat_server.sync.tuning.app_counters import INTERVALS_S, STALENESS_S
from syncbeat_server.sync.tuning.nightly_fit import NightlyFit
from syncbeat_server.sync.tuning.price_updates import HintTuner, TuningGoal

_TIERS = {tier.value: longest_s for tier, longest_s in TIER_S.items()} | {Priority.SLOW.value: math.inf}


def hint_tuner(process: Process) -> HintTuner:
    """Create the tuner of the hints of this process, and expose its figures in the metrics."""
    tuner = HintTuner(process.database, lambda: _goals(process), process.hub.live_devices, process.clock)
    count_staleness(process.slo, lambda: tuner.recorder.counters)
    process.metrics.sync.watch_apps(lambda: tuner.recorder.counters, STALENESS_S, INTERVALS_S, _TIERS)
    return tuner


def nightly_fit(process: Process) -> NightlyFit:
    """Create the task that fits the apps' priors, each night in one of the processes."""
    return NightlyFit(process.database, lambda: process.apps.current, process.clock)


def _goals(process: Process) -> Mapping[str, TuningGoal]:
    return {app_id: goal_of(app) for app_id, app in process.apps.current.items()}


def goal_of(app: AppSettings) -> TuningGoal:
    """Return the goal of an app's hints, from its settings."""
    return TuningGoal(_target(app), Bounds(app.poll_floor_s, app.longest_poll_s), app.policy)


def _target(app: AppSettings) -> Target:
    if app.requests_per_day is not None:
        return Target(TargetKind.BUDGET, float(app.requests_per_day))
    if app.staleness_p95_s is not None:
        return Target(TargetKind.P95, app.staleness_p95_s)
    return Target(TargetKind.MEAN, app.staleness_target_s or TARGET_STALENESS_S)
