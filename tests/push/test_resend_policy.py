"""Tests when a wake-up is sent again, what an attempt makes of it, and what answers tell of push reach."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.push.model import Content, DeliveryState, DeliveryUpdate, Kind, Reason
from syncbeat_server.push.policy import reachability
from syncbeat_server.push.policy.reachability import AppReach
from syncbeat_server.push.policy.resend import (
    ResendDecision,
    ResendRule,
    UnansweredWakeUp,
    await_answer,
    decide_resend,
    next_resend_s,
)
from syncbeat_server.push.policy.retry import postpone
from tests.support import claimed_delivery

pytestmark = pytest.mark.unit

RULE = ResendRule()
WAKE = replace(claimed_delivery.MESSAGE, kind=Kind.SYNC, scope="couple", epoch="e", sequence=1)
AGAIN = replace(WAKE, resends=1)


def unanswered(**fields: Any) -> UnansweredWakeUp:
    """A wake-up that was sent once to an Android phone that usually answers, and not answered."""
    sent_once = UnansweredWakeUp(
        app_id="default",
        delivery_id="d",
        user_id="ann",
        device_id="phone",
        platform="ANDROID",
        resends=0,
        ttl_s=3600.0,
        waited_s=RULE.wait_s(fields.get("resends", 0)),
        acknowledged=False,
        fetched_s=None,
        foreground=False,
        usable=True,
        superseded=False,
        answered=9.0,
        missed=1.0,
    )
    return replace(sent_once, **fields)


def test_resend_delays_are_15_30_60_and_120_seconds() -> None:
    assert [next_resend_s(resends, RULE) for resends in range(6)] == [15.0, 30.0, 60.0, 120.0, None, None]
    assert [RULE.wait_s(resends) for resends in range(6)] == [15.0, 30.0, 60.0, 120.0, 30.0, 30.0]
    assert next_resend_s(0, ResendRule(())) is None


@pytest.mark.parametrize("resends", range(4))
def test_resend_of_an_unanswered_wake_up(resends: int) -> None:
    assert decide_resend(unanswered(resends=resends), RULE) == ResendDecision(True, last_answered=0.0)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"resends": 4}, ResendDecision(False, last_answered=0.0, answered=0.0, lost=True)),
        ({"acknowledged": True}, ResendDecision(False, last_answered=1.0, answered=1.0)),
        ({"acknowledged": True, "ttl_s": -1.0}, ResendDecision(False, last_answered=1.0, answered=1.0)),
        ({"platform": "IOS"}, ResendDecision(False, last_answered=0.0, answered=0.0)),
        ({"platform": "IOS", "foreground": True}, ResendDecision(True, last_answered=0.0)),
        ({"ttl_s": 0.0}, ResendDecision(False)),
        ({"superseded": True}, ResendDecision(False)),
        ({"usable": False}, ResendDecision(False)),
        ({"fetched_s": -0.1}, ResendDecision(False)),
        ({"waited_s": 20.0}, ResendDecision(True, last_answered=None)),
        ({"waited_s": 20.0, "acknowledged": True}, ResendDecision(False, last_answered=None, answered=1.0)),
    ],
)
def test_resend_ends_and_reach_evidence_by_cause(fields: dict[str, Any], found: ResendDecision) -> None:
    assert decide_resend(unanswered(**fields), RULE) == found


def test_reach_evidence_of_a_fetch_is_weighted_by_odds() -> None:
    soon, late = (decide_resend(unanswered(fetched_s=after), RULE) for after in (1.0, 29.0))
    assert (soon.resend, late.resend, soon.lost, late.lost) == (False,) * 4
    unknown = decide_resend(unanswered(fetched_s=1.0, answered=0.0, missed=0.0), RULE)
    assert late.answered is not None
    assert soon.answered is not None
    assert unknown.answered is not None
    assert soon.answered > 0.9 > 0.15 > late.answered
    assert unknown.answered < soon.answered


def share_learned(answer_s: float | None, poll_s: float, seed: int) -> float:
    """The share that 600 wake-ups teach of a device that answers pushes (None: never) and polls."""
    dice, answered, missed = random.Random(seed), 0.0, 0.0
    for _ in range(600):
        polls = dice.uniform(0.0, poll_s)
        fetches = polls if answer_s is None else min(polls, dice.expovariate(1 / answer_s))
        woken = reachability.push_credit(reachability.answer_rate(answered, missed), fetches)
        answered, missed = answered * 0.99 + woken, missed * 0.99 + 1.0 - woken
    return reachability.answer_rate(answered, missed)


@pytest.mark.parametrize("seed", range(3))
def test_reach_evidence_excludes_polls(seed: int) -> None:
    assert share_learned(None, 30.0, seed) < 0.05
    assert share_learned(None, 20.0, seed) < 0.2
    assert share_learned(2.0, 300.0, seed) > 0.97
    assert share_learned(4.0, 60.0, seed) > 0.9


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e9), st.floats(0, 1e9))
def test_reach_belief_falls_with_the_delay(answered: float, missed: float, after_s: float, more_s: float) -> None:
    known = reachability.answer_rate(answered, missed)
    sooner, later = reachability.push_credit(known, after_s), reachability.push_credit(known, after_s + more_s)
    assert 0.0 <= later <= sooner + 1e-12
    assert sooner <= 1.0


def test_reach_of_a_new_device_is_low_until_it_answers() -> None:
    assert reachability.answer_rate(0.0, 0.0) < reachability.REACHABLE_RATE
    assert not unanswered(answered=0.0, missed=0.0).known_reachable
    assert unanswered().known_reachable
    assert not unanswered(platform="IOS").known_reachable


@pytest.mark.parametrize(
    ("counts", "fallen"),
    [
        (AppReach(900.0, 50.0, 5.0, 25.0), True),
        (AppReach(900.0, 50.0, 5.0, 14.0), False),  # too few to tell
        (AppReach(900.0, 50.0, 28.0, 2.0), False),
        (AppReach(20.0, 80.0, 6.0, 24.0), False),  # it was never better
        (AppReach(0.0, 30.0, 0.0, 30.0), False),
    ],
)
def test_reach_collapse_is_half_of_an_apps_pushes_lost(counts: AppReach, fallen: bool) -> None:
    assert reachability.has_dropped(counts) is fallen


def test_resend_waits_for_an_answer_after_provider_acceptance() -> None:
    sent = DeliveryUpdate(WAKE, DeliveryState.SENT, Reason.NONE, "id")
    assert await_answer(sent, RULE) == replace(sent, due_in_s=15.0)
    assert await_answer(replace(sent, delivery=AGAIN), RULE).due_in_s == 30.0


def test_resend_skips_visible_notifications() -> None:
    for delivery in (claimed_delivery.MESSAGE, replace(WAKE, content=Content(title="T"))):
        sent = DeliveryUpdate(delivery, DeliveryState.SENT, Reason.NONE, "id")
        assert await_answer(sent, RULE) is sent


def test_resend_policy_before_sending_is_as_for_any_other() -> None:
    waits = postpone(WAKE, Reason.UNAVAILABLE, 10.0)
    assert await_answer(waits, RULE) is waits


@pytest.mark.parametrize(
    ("state", "reason", "due_in_s", "expected"),
    [
        (DeliveryState.PENDING, Reason.UNAVAILABLE, 12.0, (Reason.NONE, 30.0, True)),
        (DeliveryState.PENDING, Reason.THROTTLED, 90.0, (Reason.NONE, 90.0, True)),
        (DeliveryState.PENDING, Reason.AMBIGUOUS, 12.0, (Reason.NONE, 30.0, False)),
        (DeliveryState.HELD, Reason.WAKE_BUDGET, 170.0, (Reason.NONE, 170.0, True)),
        (DeliveryState.HELD, Reason.WAKE_BUDGET, 1200.0, (Reason.NONE, 0.0, True)),
        (DeliveryState.HELD, Reason.LIVE_STREAM, 5.0, (Reason.NONE, 30.0, True)),
        (DeliveryState.CANCELLED, Reason.ALREADY_SEEN, 0.0, (Reason.NONE, 0.0, True)),
        (DeliveryState.EXPIRED, Reason.NONE, 0.0, (Reason.NONE, 0.0, True)),
        (DeliveryState.DEAD, Reason.RETRIES_EXHAUSTED, 0.0, (Reason.NONE, 0.0, True)),
        (DeliveryState.DEAD, Reason.UNREGISTERED, 0.0, (Reason.UNREGISTERED, 0.0, True)),
    ],
)
def test_resend_failure_keeps_the_delivery_sent(
    state: DeliveryState, reason: Reason, due_in_s: float, expected: tuple[Reason, float, bool]
) -> None:
    found = await_answer(DeliveryUpdate(AGAIN, state, reason, due_in_s=due_in_s), RULE)
    assert found.state is DeliveryState.SENT
    assert (found.reason, found.due_in_s, found.give_back_attempt) == expected


def test_resend_follows_a_replaced_token() -> None:
    found = await_answer(DeliveryUpdate(AGAIN, DeliveryState.PENDING, Reason.NONE, redirected=True), RULE)
    assert (found.state, found.due_in_s, found.redirected) == (DeliveryState.SENT, 1.0, True)
