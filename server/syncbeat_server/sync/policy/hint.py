"""Decides a device's hint from what is known of the device, its scopes and its app. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from syncbeat_server.defaults import LONGEST_POLL_S, SchedulingPolicy
from syncbeat_server.sync.model import Activity, ActivityState, Cursor, Hint, Priority, Reach, ScopeState
from syncbeat_server.sync.policy.belief import Outlook
from syncbeat_server.sync.policy.comparison_policies import FIXED_S, ewma_rate, square_root_interval, tier_interval
from syncbeat_server.sync.policy.device_weights import STREAM_MISSES, attention, longest_wait, miss_share, poll_cost
from syncbeat_server.sync.policy.hint_inputs import Tuning
from syncbeat_server.sync.policy.interval import Bounds, poll_interval
from syncbeat_server.sync.policy.rhythm import at_this_hour, factor_at, window_rate
from syncbeat_server.sync.policy.scope_signal import signal_expected

TIER_S = {Priority.IMMEDIATE: 10.0, Priority.FAST: 30.0, Priority.NORMAL: 120.0, Priority.SLOW: 300.0}
"""The longest interval of each tier but the last, which has no end."""

_MAX_EXACT_SCOPES = 32
_SAMPLE = 8
_STREAM_BELOW_S = 30.0
_VALID_INTERVALS, _MIN_VALID_S = 10.0, 300.0
_CAPPED = 1.01  # times: an interval is held by the cap if it would be so much longer without
_BY_SCOPE = attrgetter("scope")
# Kept, since a look-up in an enum takes as long as a call, and each hint makes five (`hint_vs_echo`).
_FOREGROUND, _FIXED = ActivityState.FOREGROUND, SchedulingPolicy.FIXED
_TIER_TABLE, _SQRT_EWMA = SchedulingPolicy.TIER_TABLE, SchedulingPolicy.SQRT_EWMA

Pace = Callable[[float, bool], float]
"""Moves an interval, of a device in the background or not, to a moment that few other devices share."""


class Situation(NamedTuple):
    """Holds what is known of a device that asks. `scopes`: most recently changed first.

    `resendable`: a wake-up that it does not answer is sent to it again (not on iOS in the background). `more_scopes`:
    its user has more scopes than these.
    """

    scopes: Sequence[ScopeState]
    activity: Activity
    reach: Reach = Reach()
    streaming: bool = False
    resendable: bool = True
    more_scopes: bool = False


class IntervalDecision(NamedTuple):
    """Holds an interval and its reasons: expected changes a second, the share that polls must find, the attention.

    `held_s` is the longest interval that the boosts of its scopes allow, even under load; `boosted`: they made it
    shorter than the policy did.
    """

    rate: float
    attention: float
    residual: float
    interval_s: float
    held_s: float
    boosted: bool


def decide(
    situation: Situation,
    tuning: Tuning,
    now: float,
    *,
    changed: bool,
    heads: tuple[Cursor, ...] | None = None,
    pace: Pace | None = None,
    explain: bool = False,
) -> Hint:
    """Return the hint for a device at `now`, in unix seconds.

    `heads` are its scopes' in order of names, if they are known already.
    """
    decision = decide_interval(situation, tuning, now)
    rate, matters, residual, unpaced_s, held_s, _ = decision
    interval = unpaced_s
    looking = situation.activity.state is _FOREGROUND
    if pace is not None:
        interval = min(LONGEST_POLL_S, held_s, pace(interval, not looking))
    return Hint(  # by position, which takes half the time of names
        interval,
        tier(interval),
        now + interval,
        changed,
        heads_of(situation.scopes) if heads is None else heads,
        looking and _prefers_stream(situation, tuning, now, decision),
        min(LONGEST_POLL_S, max(_MIN_VALID_S, _VALID_INTERVALS * interval)),
        _explanation(situation, tuning, decision, interval, now) if explain else "",
        situation.more_scopes,
        unpaced_s,
        matters,
        residual,
        rate * residual * matters,
    )


def decide_interval(situation: Situation, tuning: Tuning, now: float) -> IntervalDecision:
    """Return the interval of a device before pacing, and its reasons. `now` is in unix seconds."""
    matters = attention(situation.activity)
    missed = _miss_share(situation, tuning, now)
    rate, left = _outlooks(situation, tuning, now, missed, matters)
    # At least the missed share, because the difference of two rates loses its last digits.
    residual = left.rate / (rate * matters) if rate > 0.0 else missed
    if residual < missed:
        residual = missed
    elif residual > 1.0:
        residual = 1.0
    interval = _interval(situation, tuning, left, matters, residual, now)
    boosts = [TIER_S[state.boosted] for state in situation.scopes if state.boosted and state.boosted_until > now]
    if not boosts:
        return IntervalDecision(rate, matters, residual, interval, math.inf, False)
    held_s = max(tuning.bounds.floor_s, min(boosts))
    return IntervalDecision(rate, matters, residual, min(interval, held_s), held_s, held_s < interval)


def _prefers_stream(situation: Situation, tuning: Tuning, now: float, decision: IntervalDecision) -> bool:
    # A stream follows a limited number of scopes; a poll names those that changed last, whichever they are.
    return not situation.more_scopes and _interval_without_stream_s(situation, tuning, now, decision) <= _STREAM_BELOW_S


def _interval_without_stream_s(situation: Situation, tuning: Tuning, now: float, decision: IntervalDecision) -> float:
    # Changes that an open stream delivers must not count against having one.
    if not situation.streaming:
        return decision.interval_s
    return decide_interval(situation._replace(streaming=False), tuning, now).interval_s


def heads_of(scopes: Iterable[ScopeState]) -> tuple[Cursor, ...]:
    """Return the heads of scopes, in order of their names."""
    return tuple([state.cursor for state in sorted(scopes, key=_BY_SCOPE)])


def tier(interval_s: float) -> Priority:
    """Return the label of an interval."""
    for label, longest in TIER_S.items():
        if interval_s <= longest:
            return label
    return Priority.SLOW


def _miss_share(situation: Situation, tuning: Tuning, now: float) -> float:
    if situation.streaming:
        return STREAM_MISSES
    if not tuning.pushing:
        return 1.0
    return miss_share(situation.reach, tuning.app_misses if situation.resendable else tuning.push_misses, now)


def _outlooks(situation: Situation, tuning: Tuning, now: float, missed: float, matters: float) -> tuple[float, Outlook]:
    """Return the expected rate of all changes now, and the outlook of those that only polls will find, by attention.

    A push brings triggered changes, a stream brings all.
    """
    prior, reached, streaming = tuning.prior, 1.0 - missed, situation.streaming
    factors, echo = tuning.rhythm
    level = swing = delivered_level = delivered_swing = 0.0
    for state, weight in _weighted(situation.scopes):
        signal = state.signal
        one_level, one_swing = signal_expected(signal, prior, now)
        if echo > 0.0:
            one_level += echo * window_rate(signal.windows, now)
        level += weight * one_level
        swing += weight * one_swing
        if reached > 0.0:
            delivered = weight * reached * (1.0 if streaming else signal.triggered)
            delivered_level += delivered * one_level
            delivered_swing += delivered * one_swing
    if factors:
        level, swing, delivered_level, delivered_swing = at_this_hour(
            (level, swing, delivered_level, delivered_swing), factor_at(factors, now)
        )
    left = Outlook(
        matters * (level - delivered_level),
        matters * (swing - delivered_swing),
        prior.start_per_s + prior.end_per_s,
    )
    return level + swing, left


def _weighted(scopes: Sequence[ScopeState]) -> Iterable[tuple[ScopeState, float]]:
    """Yield the scopes of a device with their weights: the last changed, and of very many a sample of the others."""
    rest = len(scopes) - _MAX_EXACT_SCOPES
    if rest <= _SAMPLE:
        return zip(scopes, itertools.repeat(1.0))
    sample = scopes[_MAX_EXACT_SCOPES :: math.ceil(rest / _SAMPLE)]
    each = zip(scopes[:_MAX_EXACT_SCOPES], itertools.repeat(1.0))
    return itertools.chain(each, zip(sample, itertools.repeat(rest / len(sample))))


def _interval(
    situation: Situation, tuning: Tuning, outlook: Outlook, matters: float, residual: float, now: float
) -> float:
    if tuning.policy is _FIXED:
        return max(tuning.bounds.floor_s, FIXED_S)
    if tuning.policy is _TIER_TABLE:
        tiers = [tier_interval(state.signal.windows, now) for state in situation.scopes]
        return max(tuning.bounds.floor_s, min(tiers, default=TIER_S[Priority.SLOW]))
    cost = poll_cost(situation.activity)
    floor_s, cap_s = tuning.bounds
    bounds = Bounds(floor_s, min(LONGEST_POLL_S, longest_wait(cap_s * math.sqrt(cost / matters), residual)))
    if tuning.policy is _SQRT_EWMA:
        usual = _usual_rate(tuning)
        rates = [ewma_rate(state.signal.windows, usual, now) for state in situation.scopes]
        return square_root_interval(matters * residual * sum(rates), tuning.price.staleness, cost, bounds)
    return poll_interval(outlook, tuning.price, cost, bounds, tuning.late_s)


def _usual_rate(tuning: Tuning) -> float:
    # The mean rate of a scope of the app, by its prior.
    prior = tuning.prior
    hot_share = prior.start_per_s / (prior.start_per_s + prior.end_per_s)
    return hot_share * prior.hot_per_s + (1.0 - hot_share) * prior.cold_per_s


def _explanation(situation: Situation, tuning: Tuning, decision: IntervalDecision, paced_s: float, now: float) -> str:
    activity, many = situation.activity, len(situation.scopes) != 1
    if decision.boosted:
        by = f"a boost holds it at {decision.interval_s:.1f} s"
    elif tuning.policy in (SchedulingPolicy.ADAPTIVE, SchedulingPolicy.SQRT_EWMA):
        by = f"a stale second is worth {tuning.price.staleness:.3g} polls, which gives {decision.interval_s:.1f} s"
        by += _describe_cap(situation, tuning, decision, now)
    else:
        by = f"the policy {tuning.policy} gives {decision.interval_s:.1f} s"
    return (
        f"{len(situation.scopes)} {'scopes are' if many else 'scope is'} expected to change "
        f"{decision.rate * 3600:.2f} times an hour{_describe_hour(tuning, now)}; "
        f"attention {decision.attention:.2f} ({activity.state.lower()}, idle {activity.idle_s:.0f} s); "
        f"{_describe_residual(situation, decision)}; for {tuning.target} {by}; pacing makes it {paced_s:.1f} s"
    )


def _describe_hour(tuning: Tuning, now: float) -> str:
    factors = tuning.rhythm.factors
    return f" (in an hour {factor_at(factors, now):.2f} times as busy as others)" if factors else ""


def _describe_cap(situation: Situation, tuning: Tuning, decision: IntervalDecision, now: float) -> str:
    """Tell what the longest allowed interval costs this device: the interval that it would have without."""
    uncapped = tuning._replace(bounds=Bounds(tuning.bounds.floor_s, LONGEST_POLL_S))
    without_s = decide_interval(situation, uncapped, now).interval_s
    return f" (without the cap {without_s:.0f} s)" if without_s > _CAPPED * decision.interval_s else ""


def _describe_residual(situation: Situation, decision: IntervalDecision) -> str:
    share = f"{decision.residual:.1%}"
    left = f"polls must find {share} of the changes"
    if situation.streaming:
        return f"a stream is open, {left}"
    return f"no pushes bring any, {left}" if share == "100.0%" else f"{left}, pushes bring the rest"
