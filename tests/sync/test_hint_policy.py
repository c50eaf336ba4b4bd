"""A hint keeps its promises: shorter with more change, more attention and worse reach, within its bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.defaults import LONGEST_POLL_S, SchedulingPolicy
from syncbeat_server.sync import policy
from syncbeat_server.sync.model import (
    Activity,
    ActivityState,
    Belief,
    Cursor,
    Network,
    Priority,
    Reach,
    ScopeState,
    Signal,
    Windows,
)
from syncbeat_server.sync.policy import DEFAULT_TUNING, Situation, Tuning
from syncbeat_server.sync.policy.device_weights import attention, miss_share, poll_cost
from syncbeat_server.sync.policy.interval import Bounds, Price
from syncbeat_server.sync.policy.rhythm import HOURS, Rhythm
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.sync.policy.scope_signal import initial_signal, signal_after_change
from tests.support.fake_clock import START

pytestmark = pytest.mark.unit

NOW = START.timestamp()
LOOKING = Activity()
AWAY = Activity(ActivityState.BACKGROUND)
ANSWERS = Reach(usable=True, answered=20.0, missed=0.0, at=NOW)

finite = st.floats(0.0, 1e9)
shares = st.floats(0.0, 1.0)
beliefs = st.builds(Belief, shares, finite, finite, finite, finite, st.floats(NOW - 1e9, NOW + 1e6))
signals = st.builds(
    Signal,
    st.none() | beliefs,
    st.builds(Windows, finite, finite, st.just(NOW), st.floats(0.0, NOW)),
    st.booleans(),
    st.floats(0.0, NOW + 1e6),
    shares,
)
scopes = st.builds(ScopeState, st.text(max_size=3), st.just("e"), st.just(1), signals)
activities = st.builds(
    Activity, st.sampled_from(ActivityState), st.floats(0.0, 1e7), st.sampled_from(Network), st.booleans()
)
reaches = st.builds(Reach, st.booleans(), st.floats(0.0, 1e6), st.floats(0.0, 1e6), st.floats(0.0, NOW + 1e6))
situations = st.builds(Situation, st.lists(scopes, max_size=4), activities, reaches, st.booleans())
tunings = st.builds(
    Tuning,
    st.sampled_from(SchedulingPolicy),
    st.just("a test"),
    st.just(Bounds(5.0, 60.0)),
    st.just(DEFAULT_PRIOR),
    st.builds(Price, st.floats(1e-6, 1e6), st.floats(0.0, 1e6)),
    st.floats(1.0, 600.0),
    shares,
    shares,
    st.booleans(),
    st.builds(Rhythm, st.just(()) | st.floats(0.01, 20.0).map(lambda factor: (factor,) * HOURS), shares),
)


def scope(commits: int = 0, every_s: float = 60.0, name: str = "s", head: int = 1) -> ScopeState:
    """A scope that has changed so often of late, the last time just now."""
    signal = initial_signal(NOW - 86_400.0)
    for number in range(commits):
        signal = signal_after_change(signal, DEFAULT_PRIOR, NOW - (commits - 1 - number) * every_s)
    return ScopeState(name, "e", head, signal)


def wait(situation: Situation, tuning: Tuning = DEFAULT_TUNING) -> float:
    return policy.decide_interval(situation, tuning, NOW).interval_s


def same_or_shorter(one: float, other: float) -> bool:
    return one <= other * (1.0 + 1e-3)


@given(situations, tunings)
def test_interval_is_within_bounds_for_any_input(situation: Situation, tuning: Tuning) -> None:
    interval = wait(situation, tuning)
    assert math.isfinite(interval)
    assert 5.0 <= interval <= LONGEST_POLL_S


@given(situations, scopes)
def test_interval_never_grows_with_another_scope(situation: Situation, more: ScopeState) -> None:
    # Unless pushes bring its changes: then more of what changes needs no poll.
    alone = situation._replace(reach=Reach(), streaming=False)
    assert same_or_shorter(wait(alone._replace(scopes=[*alone.scopes, more])), wait(alone))


@given(st.floats(0.0, 7200.0), st.floats(0.0, 7200.0), st.integers(0, 8))
def test_interval_grows_with_silence(one: float, other: float, commits: int) -> None:
    soon, late = sorted((one, other))
    states = Situation([scope(commits)], LOOKING)
    waits = [policy.decide_interval(states, DEFAULT_TUNING, NOW + silent).interval_s for silent in (soon, late)]
    assert same_or_shorter(*waits)


@given(st.integers(0, 20), st.integers(0, 20))
def test_interval_never_grows_with_more_changes(one: int, other: int) -> None:
    few, many = sorted((one, other))
    assert same_or_shorter(wait(Situation([scope(many)], LOOKING)), wait(Situation([scope(few)], LOOKING)))


@given(situations, tunings, st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_interval_never_grows_with_more_attention(
    situation: Situation, tuning: Tuning, one: float, other: float
) -> None:
    less_idle, more_idle = sorted((one, other))
    soon, late = (replace(situation.activity, idle_s=idle) for idle in (less_idle, more_idle))
    punctual = tuning._replace(price=Price(tuning.price.staleness))
    assert same_or_shorter(
        wait(situation._replace(activity=soon), punctual), wait(situation._replace(activity=late), punctual)
    )


@given(situations, st.floats(0.0, 50.0), st.floats(0.0, 50.0))
def test_interval_never_shrinks_with_better_reach(situation: Situation, one: float, other: float) -> None:
    few, many = sorted((one, other))
    worse, better = (
        situation._replace(reach=Reach(usable=True, answered=count, at=NOW), streaming=False) for count in (few, many)
    )
    assert same_or_shorter(wait(worse), wait(better))
    assert same_or_shorter(wait(situation._replace(reach=Reach(), streaming=False)), wait(worse))


@given(situations, tunings, st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_interval_never_grows_with_a_higher_staleness_price(
    situation: Situation, tuning: Tuning, one: float, other: float
) -> None:
    low, high = (tuning._replace(price=Price(price)) for price in sorted((one, other)))
    assert same_or_shorter(wait(situation, high), wait(situation, low))


@given(activities)
def test_attention_is_a_share_and_monotone(activity: Activity) -> None:
    weight = attention(activity)
    assert 0.05 <= weight <= 1.0
    assert attention(replace(activity, state=ActivityState.BACKGROUND)) <= weight
    assert attention(replace(activity, idle_s=activity.idle_s * 2 + 1)) <= weight


def test_poll_cost_includes_waking_a_radio() -> None:
    assert poll_cost(LOOKING) == 1.0
    assert poll_cost(replace(LOOKING, network=Network.CELLULAR)) == 1.0
    assert poll_cost(AWAY) == 3.0
    assert poll_cost(replace(AWAY, network=Network.CELLULAR)) == pytest.approx(5.0)
    assert poll_cost(replace(LOOKING, battery_low=True)) == 2.0


def test_reach_is_earned() -> None:
    never_pushed = Reach(usable=True)
    assert miss_share(Reach(usable=False, answered=50.0, at=NOW), 0.02, NOW) == 1.0
    assert miss_share(never_pushed, 0.02, NOW) > 0.85
    assert miss_share(ANSWERS, 0.02, NOW) == pytest.approx(0.02, rel=0.01)
    silent = ANSWERS._replace(answered=2.0, missed=4.0)  # its token has died
    assert miss_share(silent, 0.02, NOW) > 0.9
    assert miss_share(ANSWERS._replace(answered=2.0), 0.02, NOW + 30 * 86_400) > 0.85  # long ago


def test_interval_of_a_reachable_device_is_long_until_pushes_break() -> None:
    triggered = scope(3)._replace(signal=scope(3).signal._replace(triggered=1.0))
    unreached = Situation([triggered], LOOKING)
    reached = unreached._replace(reach=ANSWERS)
    assert wait(reached) > 5 * wait(unreached)
    assert wait(reached, DEFAULT_TUNING._replace(pushing=False)) == wait(unreached)
    assert wait(reached) > wait(reached._replace(resendable=False)) > wait(unreached)
    assert wait(Situation([scope(3)], LOOKING, ANSWERS)) == wait(Situation([scope(3)], LOOKING))  # nobody pushes it


def test_interval_of_a_streaming_device_ignores_triggers() -> None:
    untriggered, triggered = (
        scope(6)._replace(signal=scope(6).signal._replace(triggered=share)) for share in (0.0, 1.0)
    )
    alone = Situation([untriggered], LOOKING)
    streaming = alone._replace(streaming=True)
    assert policy.decide_interval(streaming, DEFAULT_TUNING, NOW).residual == pytest.approx(0.001)
    assert wait(streaming) == wait(streaming._replace(scopes=[triggered])) > 5 * wait(alone)
    assert wait(streaming, DEFAULT_TUNING._replace(pushing=False)) == wait(streaming)


def test_stream_advice_is_not_undermined_by_the_open_stream() -> None:
    for scopes in ([scope(6)], [scope()]):
        alone = policy.decide(Situation(scopes, LOOKING), DEFAULT_TUNING, NOW, changed=False)
        streaming = policy.decide(Situation(scopes, LOOKING, streaming=True), DEFAULT_TUNING, NOW, changed=False)
        assert streaming.prefer_stream is alone.prefer_stream
        assert streaming.poll_interval_s > alone.poll_interval_s


def test_interval_follows_writers_coming_and_leaving() -> None:
    quiet = scope(3, every_s=7200.0)
    later = NOW + 1800.0

    def told(*, present: bool) -> Situation:
        signal = quiet.signal._replace(present=present, presence_at=later - 5.0)
        return Situation([quiet._replace(signal=signal)], LOOKING)

    came, nobody, left = (
        policy.decide_interval(one, DEFAULT_TUNING, later).interval_s
        for one in (told(present=True), Situation([quiet], LOOKING), told(present=False))
    )
    assert came < nobody <= left


def test_boost_holds_a_scope_at_its_tier_until_it_ends() -> None:
    quiet = scope()._replace(boosted=Priority.IMMEDIATE, boosted_until=NOW + 60.0)
    assert wait(Situation([quiet], AWAY)) == 10.0
    over = policy.decide_interval(Situation([quiet], AWAY), DEFAULT_TUNING, NOW + 60.0).interval_s
    assert over > 60.0


@pytest.mark.parametrize("stretch", [1.1, 12.0])
@pytest.mark.parametrize("tier", [Priority.NORMAL, Priority.SLOW])
def test_boost_without_effect_keeps_the_stretch(tier: Priority, stretch: float) -> None:
    plain = scope(4)
    idle = plain._replace(boosted=tier, boosted_until=NOW + 60.0)
    wanted = wait(Situation([plain], AWAY))
    assert 50.0 < wanted < 109.0
    hint, boosted = (
        policy.decide(
            Situation([one], AWAY), DEFAULT_TUNING, NOW, changed=False, pace=lambda s, _: stretch * s, explain=True
        )
        for one in (plain, idle)
    )
    assert boosted.poll_interval_s == min(hint.poll_interval_s, policy.hint.TIER_S[tier])
    assert "a boost" not in boosted.explanation
    assert "a stale second is worth" in boosted.explanation


def test_boost_is_kept_under_load() -> None:
    fast = scope()._replace(boosted=Priority.FAST, boosted_until=NOW + 60.0)
    hint = policy.decide(
        Situation([fast], AWAY), DEFAULT_TUNING, NOW, changed=False, pace=lambda wait, _: 12.0 * wait, explain=True
    )
    assert hint.poll_interval_s == 30.0
    assert "a boost holds it at 30.0 s" in hint.explanation


@pytest.mark.parametrize("name", SchedulingPolicy)
def test_interval_never_goes_below_the_floor(name: SchedulingPolicy) -> None:
    slow = DEFAULT_TUNING._replace(policy=name, bounds=Bounds(60.0, 300.0))
    boosted = scope(9)._replace(boosted=Priority.IMMEDIATE, boosted_until=NOW + 60.0)
    for one in (scope(9), boosted):
        assert wait(Situation([one], LOOKING), slow) == 60.0
    hint = policy.decide(Situation([boosted], LOOKING), slow, NOW, changed=False, pace=lambda wait, _: 2.0 * wait)
    assert hint.poll_interval_s == 60.0


@pytest.mark.parametrize(
    ("interval", "label"),
    [
        (10.0, Priority.IMMEDIATE),
        (10.001, Priority.FAST),
        (30.0, Priority.FAST),
        (30.001, Priority.NORMAL),
        (120.0, Priority.NORMAL),
        (120.001, Priority.SLOW),
        (4000.0, Priority.SLOW),
    ],
)
def test_tier_is_the_label_of_an_interval(interval: float, label: Priority) -> None:
    assert policy.tier(interval) is label


def test_policies_by_name_give_their_intervals() -> None:
    situation = Situation([scope(5)], AWAY)
    assert wait(situation, DEFAULT_TUNING._replace(policy=SchedulingPolicy.FIXED)) == 30.0
    assert wait(situation, DEFAULT_TUNING._replace(policy=SchedulingPolicy.TIER_TABLE)) == 10.0
    assert wait(Situation([], AWAY), DEFAULT_TUNING._replace(policy=SchedulingPolicy.TIER_TABLE)) == 300.0
    looking = Situation([scope(5)], LOOKING)
    by_ewma = wait(looking, DEFAULT_TUNING._replace(policy=SchedulingPolicy.SQRT_EWMA))
    rate = sum(math.exp(-60.0 * n / 180.0) for n in range(5)) / 180.0
    assert by_ewma == pytest.approx(max(5.0, math.sqrt(2.0 / (3.2 * rate))))


def test_interval_of_many_scopes_uses_a_sample_of_quiet_ones() -> None:
    quiet = [scope(1, name=f"q{number}")._replace(signal=initial_signal(NOW - 86_400.0)) for number in range(400)]
    busy = [scope(4, name="busy"), *quiet]
    exact = policy.decide_interval(Situation(quiet[:40], LOOKING), DEFAULT_TUNING, NOW).rate * 10
    assert policy.decide_interval(Situation(quiet, LOOKING), DEFAULT_TUNING, NOW).rate == pytest.approx(exact)
    assert policy.decide_interval(Situation(busy, LOOKING), DEFAULT_TUNING, NOW).rate > exact


def test_hint_contains_interval_validity_and_heads() -> None:
    situation = Situation([scope(4, name="b", head=7), scope(0, name="a", head=3)], LOOKING)
    hint = policy.decide(situation, DEFAULT_TUNING, NOW, changed=True)
    assert hint.next_poll_at == NOW + hint.poll_interval_s
    assert hint.priority is policy.tier(hint.poll_interval_s)
    assert hint.heads == (Cursor("a", "e", 3), Cursor("b", "e", 7))
    assert (hint.changed, hint.explanation) == (True, "")
    assert 300.0 <= hint.valid_s <= LONGEST_POLL_S


def test_interval_without_scopes_is_the_longest() -> None:
    hint = policy.decide(Situation([], LOOKING), DEFAULT_TUNING, NOW, changed=False)
    assert (hint.poll_interval_s, hint.priority, hint.heads) == (75.0, Priority.NORMAL, ())


def test_load_leveling_has_the_last_word() -> None:
    def pace(interval: float, background: bool) -> float:
        return interval * (3.0 if background else 2.0)

    for activity, factor in ((LOOKING, 2.0), (AWAY, 3.0)):
        situation = Situation([scope(2)], activity)
        plain = policy.decide(situation, DEFAULT_TUNING, NOW, changed=False)
        paced = policy.decide(situation, DEFAULT_TUNING, NOW, changed=False, pace=pace)
        assert paced.poll_interval_s == pytest.approx(factor * plain.poll_interval_s)


def test_interval_under_load_is_at_most_the_hint_validity() -> None:
    situation = Situation([], AWAY, streaming=True)
    hint = policy.decide(situation, DEFAULT_TUNING, NOW, changed=False, pace=lambda wait, background: 12.0 * wait)
    assert hint.poll_interval_s == hint.valid_s == hint.unpaced_s == LONGEST_POLL_S


def test_stream_is_advised_for_attentive_devices_of_busy_scopes() -> None:
    def advised(*scopes: ScopeState, activity: Activity = LOOKING) -> bool:
        return policy.decide(Situation(scopes, activity), DEFAULT_TUNING, NOW, changed=False).prefer_stream

    assert advised(scope(6))
    assert not advised(scope(6), activity=AWAY)
    assert not advised(scope())


def test_explanation_gives_the_figures() -> None:
    situation = Situation([scope(4)], replace(LOOKING, idle_s=60.0))
    hint = policy.decide(situation, DEFAULT_TUNING, NOW, changed=False, explain=True)
    rate = policy.decide_interval(situation, DEFAULT_TUNING, NOW).rate * 3600
    for words in ("1 scope is", f"{rate:.2f} times an hour", "foreground", "idle 60 s", "no pushes bring any"):
        assert words in hint.explanation
    for words in ("a mean staleness of 15 s", "3.2 polls", f"{hint.poll_interval_s:.1f} s"):
        assert words in hint.explanation


@pytest.mark.parametrize("activity", [LOOKING, replace(LOOKING, idle_s=60.0), AWAY])
def test_explanation_mentions_pushes_only_where_they_help(activity: Activity) -> None:
    for commits in range(1, 9):  # the share of some of them is off by the last bit
        hint = policy.decide(Situation([scope(commits)], activity), DEFAULT_TUNING, NOW, changed=False, explain=True)
        assert "no pushes bring any, polls must find 100.0% of the changes" in hint.explanation
