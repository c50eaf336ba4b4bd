"""Learns an app's rhythm from the histories that its prior is fitted to. Pure.

The hours of the week are counted. The echo is the weight of a scope's long window, beside its belief, with which polls
by the square-root law would have been fewest at one mean staleness: requests go with the integral of the root of the
estimated rate, and staleness with the mean of its inverse at the changes, so that their product is to be least
(`interval.py` has the law). A likelihood would answer another question, namely how often rates are right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from syncbeat_server.sync.model import Signal
from syncbeat_server.sync.policy.fit_samples import MAX_SCOPES, History
from syncbeat_server.sync.policy.rhythm import (
    HOUR_S,
    HOURS,
    NO_EVIDENCE,
    Rhythm,
    WeekEvidence,
    rhythm_of,
    rhythmic_outlook,
    window_rate,
)
from syncbeat_server.sync.policy.scope_prior import Prior
from syncbeat_server.sync.policy.scope_signal import initial_signal, signal_after_change

MEMORY_S = 14 * 86_400.0
"""The age at which a counted change counts for 1/e."""

_WARM_UP = 0.5  # of a history: its beliefs begin with nothing, and would be blamed for that
_STEP_S = 900.0
_ECHOES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
_WORTH = 0.002  # of the requests: for less no echo is added
_LEAST_CHANGES = 30
_TINY = 1e-12


class _Estimates(NamedTuple):
    """Holds the rate of the belief and that of the window, at each change, and in each step of time with its length."""

    at_changes: list[tuple[float, float]]
    in_time: list[tuple[float, float, float]]


def learn_rhythm(histories: Sequence[History], prior: Prior, before: WeekEvidence = NO_EVIDENCE) -> WeekEvidence:
    """Return the evidence after these histories of one span of time, whose `prior` is fitted already."""
    evidence = count_hours(histories, before)
    return evidence._replace(
        echo=_echo(_estimates(histories[:MAX_SCOPES], prior, rhythm_of(evidence)._replace(echo=0.0)))
    )


def count_hours(histories: Sequence[History], before: WeekEvidence = NO_EVIDENCE) -> WeekEvidence:
    """Return the evidence of the hours after these histories of one span of time; its echo is as before."""
    start = min((history.start_s for history in histories), default=0.0)
    end = max((history.end_s for history in histories), default=0.0)
    kept = math.exp(-max(0.0, end - start) / MEMORY_S)
    changes = [kept * count for count in before.changes]
    seconds = [kept * span for span in before.seconds]
    for history in histories:
        for at in history.changes:
            changes[int(at / HOUR_S) % HOURS] += 1.0
    for hour in range(int(start / HOUR_S), math.ceil(end / HOUR_S)):
        seconds[hour % HOURS] += min(end, (hour + 1) * HOUR_S) - max(start, hour * HOUR_S)
    return WeekEvidence(tuple(changes), tuple(seconds), before.echo)


def _estimates(histories: Iterable[History], prior: Prior, rhythm: Rhythm) -> _Estimates:
    found = _Estimates([], [])
    for history in histories:
        signal = initial_signal(history.start_s)
        at = history.start_s + _WARM_UP * (history.end_s - history.start_s)
        changes = [*history.changes, math.inf]
        index = 0
        while changes[index] < at:
            signal = signal_after_change(signal, prior, changes[index])
            index += 1
        while at < history.end_s:
            until = min(at + _STEP_S, changes[index], history.end_s)
            found.in_time.append((*_rates(signal, prior, rhythm, (at + until) / 2.0), until - at))
            at = until
            if at == changes[index]:
                found.at_changes.append(_rates(signal, prior, rhythm, at))
                signal = signal_after_change(signal, prior, at)
                index += 1
    return found


def _rates(signal: Signal, prior: Prior, rhythm: Rhythm, at: float) -> tuple[float, float]:
    return rhythmic_outlook(signal, prior, rhythm, at).rate, window_rate(signal.windows, at)


def _echo(estimates: _Estimates) -> float:
    if len(estimates.at_changes) < _LEAST_CHANGES:
        return 0.0
    costs = {echo: _requests(estimates, echo) for echo in _ECHOES}
    best = min(_ECHOES, key=lambda echo: costs[echo])
    return best if costs[best] < (1.0 - _WORTH) * costs[0.0] else 0.0


def _requests(estimates: _Estimates, echo: float) -> float:
    polls = math.fsum(
        seconds * math.sqrt(belief + echo * window + _TINY) for belief, window, seconds in estimates.in_time
    )
    return polls * math.fsum(1.0 / math.sqrt(belief + echo * window + _TINY) for belief, window in estimates.at_changes)
