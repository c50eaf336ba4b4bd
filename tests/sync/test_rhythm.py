"""An app's rhythm: the hours of its week, and what changes bring beyond beliefs."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.sync.model import Activity, Reach, ScopeState
from syncbeat_server.sync.policy import DEFAULT_TUNING, Situation, decide, decide_interval
from syncbeat_server.sync.policy.fit_samples import History
from syncbeat_server.sync.policy.rhythm import (
    HOUR_S,
    HOURS,
    NO_RHYTHM,
    Rhythm,
    WeekEvidence,
    at_this_hour,
    factor_at,
    rhythm_of,
)
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.sync.policy.scope_signal import initial_signal, signal_after_change
from syncbeat_server.sync.tuning.rhythm_fit import learn_rhythm

pytestmark = pytest.mark.unit

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
NOON = 300 * WEEK_S + 12 * HOUR_S
WATCHED = (DAY_S,) * HOURS
BY_DAY = Rhythm(tuple(1.9 if hour % 24 in range(8, 20) else 0.1 for hour in range(HOURS)))

rates = st.floats(0.0, 1.0)
factors = st.lists(st.floats(0.01, 20.0), min_size=HOURS, max_size=HOURS).map(tuple)


PATIENT = DEFAULT_TUNING._replace(bounds=DEFAULT_TUNING.bounds._replace(cap_s=14_400.0))


def wait(situation: Situation, rhythm: Rhythm, now: float) -> float:
    return decide_interval(situation, PATIENT._replace(rhythm=rhythm), now).interval_s


def scope(commits: int, now: float) -> ScopeState:
    """A scope that changed so often, a minute apart, until an hour before."""
    signal = initial_signal(now - DAY_S)
    for number in range(commits):
        signal = signal_after_change(signal, DEFAULT_PRIOR, now - HOUR_S - (commits - number) * 60.0)
    return ScopeState("s", "e", commits, signal)


def test_no_evidence_is_no_rhythm() -> None:
    assert rhythm_of(WeekEvidence()) == NO_RHYTHM
    assert factor_at((), NOON) == 1.0


def test_factors_follow_the_hours_and_the_days() -> None:
    changes = [100.0 if hour % 24 in range(8, 20) else 1.0 for hour in range(HOURS)]
    changes[-24:] = [count / 4 for count in changes[-24:]]
    found = rhythm_of(WeekEvidence(tuple(changes), WATCHED)).factors
    assert sum(found) / HOURS == pytest.approx(1.0)
    assert found[12] > 1.7
    assert found[3] < 0.15
    assert found[-12] < 0.5 * found[12]


def test_days_without_evidence_are_like_others() -> None:
    first = tuple(10.0 if hour < 24 else 0.0 for hour in range(HOURS))
    watched = tuple(HOUR_S if hour < 24 else 0.0 for hour in range(HOURS))
    assert rhythm_of(WeekEvidence(first, watched)).factors == pytest.approx((1.0,) * HOURS)


@given(factors, st.floats(-1e10, 1e10))
def test_factor_is_periodic_and_within_its_hours(hours: tuple[float, ...], now: float) -> None:
    assert min(hours) * 0.999 <= factor_at(hours, now) <= max(hours) * 1.001
    assert factor_at(hours, now + WEEK_S) == pytest.approx(factor_at(hours, now), rel=1e-3, abs=1e-3)


def test_factor_is_that_of_the_middle_of_an_hour() -> None:
    hours = tuple(float(hour) for hour in range(HOURS))
    for hour in range(HOURS):
        assert factor_at(hours, 300 * WEEK_S + (hour + 0.5) * HOUR_S) == hours[hour]


@given(rates, rates, rates, rates, st.floats(0.01, 20.0))
def test_rates_of_an_hour_are_never_negative(
    level: float, swing: float, delivered: float, sinking: float, busy: float
) -> None:
    for sign in (swing, -min(level, swing)):
        usual = level, sign, delivered * level, -sinking * delivered * level
        now_level, now_swing, left_level, left_swing = at_this_hour(usual, busy)
        assert now_level + now_swing >= -1e-12
        assert (now_level - left_level) + (now_swing - left_swing) >= -1e-12
        assert now_level >= left_level - 1e-12


def test_busy_hours_shorten_intervals_of_quiet_scopes() -> None:
    quiet = Situation([scope(0, NOON)], Activity())
    night = NOON + 12 * HOUR_S
    assert wait(quiet, BY_DAY, NOON) < wait(quiet, NO_RHYTHM, NOON) < wait(quiet, BY_DAY, night)


def test_a_session_under_way_is_not_blamed_on_the_hour() -> None:
    now = NOON - HOUR_S
    hot = initial_signal(now - DAY_S)
    for number in range(8):
        hot = signal_after_change(hot, DEFAULT_PRIOR, now - (8 - number) * 60.0)
    situation = Situation([ScopeState("s", "e", 8, hot)], Activity())
    assert wait(situation, BY_DAY, now) == pytest.approx(wait(situation, NO_RHYTHM, now), rel=0.1)


def test_echo_shortens_intervals_after_changes() -> None:
    changed = Situation([scope(6, NOON)], Activity())
    assert wait(changed, NO_RHYTHM._replace(echo=1.0), NOON) < wait(changed, NO_RHYTHM, NOON)


def test_rhythm_leaves_what_pushes_bring_alone() -> None:
    answers = Reach(usable=True, answered=20.0, missed=0.0, at=NOON)
    state = scope(6, NOON)
    triggered = state._replace(signal=state.signal._replace(triggered=1.0))
    tuning = DEFAULT_TUNING._replace(rhythm=BY_DAY)
    reached = decide_interval(Situation([triggered], Activity(), answers), tuning, NOON)
    plain = decide_interval(Situation([triggered], Activity(), answers), DEFAULT_TUNING, NOON)
    assert reached.residual == pytest.approx(plain.residual, rel=0.05)


def by_hawkes(scopes: int, echo: float) -> list[History]:
    """A day of scopes whose changes each bring `echo` further ones within two hours."""
    dice, found = random.Random(5), []
    for _ in range(scopes):
        waiting = [dice.uniform(0.0, DAY_S) for _ in range(4)]
        changes: list[float] = []
        while waiting:
            at = waiting.pop()
            if at >= DAY_S:
                continue
            changes.append(at)
            waiting += [at + dice.expovariate(1 / 7200.0) for _ in range(dice.random() < echo)]
        found.append(History(NOON, NOON + DAY_S, [NOON + at for at in sorted(changes)]))
    return found


def test_echo_is_learned_where_changes_bring_further_ones() -> None:
    alone = learn_rhythm(by_hawkes(120, 0.0), DEFAULT_PRIOR).echo
    echoing = learn_rhythm(by_hawkes(120, 0.8), DEFAULT_PRIOR).echo
    assert alone < 0.1 < echoing


def test_evidence_fades() -> None:
    histories = [History(NOON, NOON + DAY_S, [NOON + 30.0])]
    first = learn_rhythm(histories, DEFAULT_PRIOR)
    assert sum(first.changes) == first.changes[12] == 1.0
    assert sum(first.seconds) == pytest.approx(DAY_S)
    second = learn_rhythm(histories, DEFAULT_PRIOR, first)
    assert sum(second.changes) == pytest.approx(1.0 + math.exp(-1 / 14))


def test_explanation_tells_the_hour_and_what_the_cap_costs() -> None:
    quiet = Situation([scope(0, NOON)], Activity())
    capped = decide(quiet, DEFAULT_TUNING._replace(rhythm=BY_DAY), NOON, changed=False, explain=True)
    free = decide(quiet, PATIENT, NOON, changed=False, explain=True)
    without_s = wait(quiet, BY_DAY, NOON)
    assert "(in an hour 1.90 times as busy as others)" in capped.explanation
    assert f"which gives 75.0 s (without the cap {without_s:.0f} s)" in capped.explanation
    assert "as busy" not in free.explanation
    assert "without the cap" not in free.explanation


def test_no_history_teaches_nothing() -> None:
    assert learn_rhythm([], DEFAULT_PRIOR) == WeekEvidence()
