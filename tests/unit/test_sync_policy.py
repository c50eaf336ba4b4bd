"""The square-root law keeps its promises: shorter with more change and more attention, within its bounds."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbeat_server.sync import policy
from syncbeat_server.sync.model import Activity, ActivityState, Cursor, Network, Priority, ScopeState
from tests.fakes import START

LOOKING = Activity()
AWAY = Activity(ActivityState.BACKGROUND)

# The same examples each time, however slow the machine is.
steady = settings(deadline=None, database=None, derandomize=True)

rates = st.floats(0.0, 10.0)
weights = st.floats(0.0, 1.0)
activities = st.builds(
    Activity, st.sampled_from(ActivityState), st.floats(0.0, 1e7), st.sampled_from(Network), st.booleans()
)


def scope(per_hour: float, name: str = "s", head: int = 1) -> ScopeState:
    return ScopeState(name, "e", head, per_hour / 3600, START)


@steady
@given(rates, rates, weights)
def test_more_change_never_means_a_longer_wait(one: float, other: float, weight: float) -> None:
    few, many = sorted((one, other))
    assert policy.interval_s(many, weight) <= policy.interval_s(few, weight)


@steady
@given(rates, weights, weights)
def test_more_attention_never_means_a_longer_wait(rate: float, one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert policy.interval_s(rate, more) <= policy.interval_s(rate, less)


@steady
@given(st.floats(0.0, allow_infinity=False, allow_nan=False), weights)
def test_the_wait_is_from_ten_seconds_to_five_minutes(rate: float, weight: float) -> None:
    assert 10.0 <= policy.interval_s(rate, weight) <= 300.0


def test_between_the_bounds_it_is_the_square_root_law() -> None:
    slow, fast = policy.interval_s(0.001, 1.0), policy.interval_s(0.004, 1.0)
    assert slow == pytest.approx(2 * fast)  # four times the rate, half the wait
    assert policy.interval_s(0.004, 0.25) == pytest.approx(slow)  # attention weighs as the rate does


@steady
@given(activities)
def test_attention_is_a_share_and_never_more_when_something_speaks_against_it(activity: Activity) -> None:
    weight = policy.attention(activity)
    assert 0.0 <= weight <= 1.0
    for lesser in (
        replace(activity, state=ActivityState.BACKGROUND),
        replace(activity, idle_s=activity.idle_s * 2 + 1),
        replace(activity, battery_low=True),
        replace(activity, network=Network.CELLULAR),
    ):
        assert policy.attention(lesser) <= weight


def test_attention_counts_what_a_device_says() -> None:
    assert policy.attention(LOOKING) == 1.0
    assert policy.attention(replace(LOOKING, idle_s=120.0)) == pytest.approx(0.5)
    assert policy.attention(replace(LOOKING, idle_s=-5.0)) == 1.0
    assert policy.attention(AWAY) == pytest.approx(0.1)
    assert policy.attention(replace(LOOKING, network=Network.WIFI)) == 1.0
    assert policy.attention(replace(LOOKING, network=Network.CELLULAR, battery_low=True)) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("interval", "label"),
    [
        (10.0, Priority.IMMEDIATE),
        (10.001, Priority.FAST),
        (30.0, Priority.FAST),
        (30.001, Priority.NORMAL),
        (120.0, Priority.NORMAL),
        (120.001, Priority.SLOW),
        (300.0, Priority.SLOW),
    ],
)
def test_a_tier_is_the_label_of_an_interval(interval: float, label: Priority) -> None:
    assert policy.tier(interval) is label


@steady
@given(rates, rates, weights)
def test_a_shorter_wait_never_has_a_slower_label(one: float, other: float, weight: float) -> None:
    order = list(Priority)
    short, long = sorted((policy.interval_s(one, weight), policy.interval_s(other, weight)))
    assert order.index(policy.tier(short)) <= order.index(policy.tier(long))


def test_a_rate_decays_with_the_time_since_the_last_change() -> None:
    state = scope(per_hour=36.0)
    assert policy.rate_at(state, START) == pytest.approx(0.01)
    assert policy.rate_at(state, START + timedelta(seconds=policy.MEMORY_S)) == pytest.approx(0.01 / 2.718281828)
    assert policy.rate_at(state, START + timedelta(days=365)) == pytest.approx(0.0)
    assert policy.rate_at(state, START - timedelta(seconds=60)) == pytest.approx(0.01)  # clocks differ
    assert policy.rate_at(state._replace(changed_at=None), START) == 0.0


@steady
@given(st.lists(st.floats(0.0, 500.0), max_size=6), st.floats(0.0, 500.0), activities, st.integers(0, 100_000))
def test_another_scope_never_makes_the_wait_longer(
    per_hour: list[float], more: float, activity: Activity, later_s: int
) -> None:
    states = [scope(rate, f"s{n}") for n, rate in enumerate(per_hour)]
    now = START + timedelta(seconds=later_s)
    few = policy.decide(states, activity, now, changed=False)
    many = policy.decide([*states, scope(more, "more")], activity, now, changed=False)
    assert many.poll_interval_s <= few.poll_interval_s + 1e-9


def test_a_hint_says_when_how_soon_and_where_everything_is() -> None:
    hint = policy.decide([scope(20, "b", 7), scope(0, "a", 3)], LOOKING, START, changed=True)
    assert hint.next_poll_at == START + timedelta(seconds=hint.poll_interval_s)
    assert hint.priority is policy.tier(hint.poll_interval_s)
    assert hint.heads == (Cursor("a", "e", 3), Cursor("b", "e", 7))
    assert (hint.changed, hint.explanation) == (True, "")


def test_a_device_without_scopes_waits_longest() -> None:
    hint = policy.decide([], LOOKING, START, changed=False)
    assert (hint.poll_interval_s, hint.priority, hint.heads) == (300.0, Priority.SLOW, ())


def test_a_stream_is_advised_to_who_looks_at_what_changes_often() -> None:
    assert policy.decide([scope(60)], LOOKING, START, changed=False).prefer_stream
    assert not policy.decide([scope(60)], AWAY, START, changed=False).prefer_stream
    assert not policy.decide([scope(0.1)], LOOKING, START, changed=False).prefer_stream


def test_an_explanation_gives_the_figures() -> None:
    hint = policy.decide([scope(20)], replace(LOOKING, idle_s=60.0), START, changed=False, explain=True)
    for figure in ("1 scopes", "20.00 times an hour", "foreground", "idle 60 s", f"{hint.poll_interval_s:.1f} s"):
        assert figure in hint.explanation
