"""What hints learn by: the targets of the apps' settings, and the tasks that tune to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from syncbeat_server.app.process import Process
from syncbeat_server.defaults import TARGET_STALENESS_S
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.sync.model import Priority
from syncbeat_server.sync.policy.hint import TIER_S
from syncbeat_server.sync.policy.interval import Bounds
from syncbeat_server.sync.policy.price_controller import Target, TargetKind
from syncbeat_server.sync.tuning.counters import INTERVALS_S, STALENESS_S
from syncbeat_server.sync.tuning.hint_recorder import Recorder
from syncbeat_server.sync.tuning.nightly_fit import NightlyFit
from syncbeat_server.sync.tuning.price_updates import Aim, Learning

_TIERS = {tier.value: longest_s for tier, longest_s in TIER_S.items()} | {Priority.SLOW.value: math.inf}


def learning_of(process: Process) -> Learning:
    """What tunes the hints of a process that serves them, shown in its metrics."""
    learning = Learning(process.database, lambda: _aims(process), process.hub.live_devices, process.clock)
    process.metrics.sync.watch_apps(lambda: learning.recorder.tallies, STALENESS_S, INTERVALS_S, _TIERS)
    return learning


def nightly_fit(process: Process) -> NightlyFit:
    """What fits the apps' priors, on some process."""
    return NightlyFit(process.database, lambda: process.apps.current, process.clock)


def sampling(
    process: Process, recorder: Recorder, scope_changed: Callable[[str, str], None]
) -> Callable[[str, str], None]:
    """Tells `scope_changed` of each publish, and remembers when sampled scopes changed."""

    def published(app_id: str, scope: str) -> None:
        recorder.changed(app_id, scope, process.clock.now().timestamp())
        scope_changed(app_id, scope)

    return published


def _aims(process: Process) -> Mapping[str, Aim]:
    return {app_id: aim_of(app) for app_id, app in process.apps.current.items()}


def aim_of(app: AppSettings) -> Aim:
    """What an app's settings say of its hints."""
    return Aim(_target(app), Bounds(app.poll_floor_s, app.longest_poll_s), app.policy)


def _target(app: AppSettings) -> Target:
    if app.requests_per_day is not None:
        return Target(TargetKind.BUDGET, float(app.requests_per_day))
    if app.staleness_p95_s is not None:
        return Target(TargetKind.P95, app.staleness_p95_s)
    return Target(TargetKind.MEAN, app.staleness_target_s or TARGET_STALENESS_S)
