"""Cost of deciding a hint in microseconds of CPU: the adaptive policy against moving averages."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from bench.figure import Better, Figure, Options, Round, measure_pairs
from syncbeat_server.defaults import SchedulingPolicy
from syncbeat_server.sync.model import Activity, ScopeState
from syncbeat_server.sync.policy import DEFAULT_TUNING, Situation, Tuning, decide, signal_after_change
from syncbeat_server.sync.policy.scope_signal import initial_signal

_HINTS = 20_000
_SCOPES = 3
_NOW = datetime(2030, 1, 1, tzinfo=UTC)


def measure(options: Options) -> Figure:
    """Measure a device with three scopes that have changed one, two and three times within two hours."""
    situation = Situation([_scope(number) for number in range(1, _SCOPES + 1)], Activity())
    rival = DEFAULT_TUNING._replace(policy=SchedulingPolicy.SQRT_EWMA)
    return measure_pairs(
        "policy_us",
        "us of CPU/hint",
        Better.LESS,
        options,
        lambda: _measure_decisions(situation, DEFAULT_TUNING),
        lambda: _measure_decisions(situation, rival),
        baseline_is="the square-root law over two moving averages",
        scopes=_SCOPES,
    )


def _scope(commits: int) -> ScopeState:
    made = (_NOW - timedelta(days=1)).timestamp()
    signal = initial_signal(made)
    for number in range(commits):
        signal = signal_after_change(signal, DEFAULT_TUNING.prior, _NOW.timestamp() - 7200.0 + 600.0 * number)
    return ScopeState(f"scope-{commits}", "epoch", commits, signal)


def _measure_decisions(situation: Situation, tuning: Tuning) -> Round:
    before = time.process_time()
    for number in range(_HINTS):
        decide(situation, tuning, _NOW.timestamp() + number % 60, changed=False)
    return Round((time.process_time() - before) / _HINTS * 1e6, None, None)
