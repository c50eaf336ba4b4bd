"""Tests what becomes of a delivery before and after an attempt."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.push.model import (
    Blame,
    ClaimedDelivery,
    DeliveryState,
    Kind,
    Outcome,
    Reason,
    Verdict,
)
from syncbeat_server.push.policy.holds import hold_or_end
from syncbeat_server.push.policy.retry import RetryRule, conclude
from tests.support import claimed_delivery
from tests.support.fake_clock import START

pytestmark = pytest.mark.unit

RULE = RetryRule(first_s=10.0, grace_s=5.0)
DELIVERY = replace(claimed_delivery.MESSAGE, kind=Kind.SYNC, type="news", scope="couple", epoch="e", sequence=1)
MESSAGE = replace(DELIVERY, kind=Kind.MESSAGE)


def fate(delivery: ClaimedDelivery, *, live: bool = False) -> tuple[DeliveryState, Reason] | None:
    found = hold_or_end(delivery, live, START, RULE)
    if found is None:
        return None
    assert found.give_back_attempt  # none was made
    return found.state, found.reason


@pytest.mark.parametrize(
    ("changes", "live", "expected"),
    [
        ({}, False, None),
        ({}, True, (DeliveryState.HELD, Reason.LIVE_STREAM)),
        ({"held_for_stream": True}, True, None),
        ({"already_seen": True}, False, (DeliveryState.CANCELLED, Reason.ALREADY_SEEN)),
        ({"already_seen": True, "held_for_stream": True}, True, (DeliveryState.CANCELLED, Reason.ALREADY_SEEN)),
        ({"registration_token": ""}, True, (DeliveryState.DEAD, Reason.NO_TOKEN)),
        ({"registration_token": "", "already_seen": True}, False, (DeliveryState.CANCELLED, Reason.ALREADY_SEEN)),
        ({"ttl_s": 0.0, "already_seen": True}, True, (DeliveryState.EXPIRED, Reason.NONE)),
        ({"kind": Kind.MESSAGE, "already_seen": True}, True, None),
        ({"kind": Kind.MESSAGE, "ttl_s": -1.0}, False, (DeliveryState.EXPIRED, Reason.NONE)),
        ({"kind": Kind.MESSAGE, "registration_token": ""}, False, (DeliveryState.DEAD, Reason.NO_TOKEN)),
    ],
)
def test_preflight_attempts_unless_needless(
    changes: dict[str, Any], live: bool, expected: tuple[DeliveryState, Reason] | None
) -> None:
    assert fate(replace(DELIVERY, **changes), live=live) == expected


def test_preflight_gives_a_stream_its_grace_period() -> None:
    held = hold_or_end(DELIVERY, True, START, RULE)
    assert held is not None
    assert held.due_in_s == 5.0


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        (Outcome(Verdict.SENT, provider_message_id="m"), DeliveryState.SENT, Reason.NONE),
        (Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED), DeliveryState.DEAD, Reason.UNREGISTERED),
        (Outcome(Verdict.INVALID_TOKEN, Reason.UNREGISTERED), DeliveryState.DEAD, Reason.UNREGISTERED),
        (Outcome(Verdict.REJECTED, Reason.WRONG_SENDER), DeliveryState.DEAD, Reason.WRONG_SENDER),
        (Outcome(Verdict.RETRY, Reason.AMBIGUOUS), DeliveryState.PENDING, Reason.AMBIGUOUS),
    ],
)
def test_outcome_decides_the_transition(outcome: Outcome, state: DeliveryState, reason: Reason) -> None:
    finished = conclude(DELIVERY, outcome, RULE, random.Random(1))
    assert (finished.state, finished.reason, finished.provider_message_id) == (
        state,
        reason,
        outcome.provider_message_id,
    )
    assert not finished.give_back_attempt
    assert finished.invalid_token == (outcome.verdict is Verdict.INVALID_TOKEN)


@given(attempt=st.integers(1, 10_000), seed=st.integers())
def test_backoff_is_between_first_wait_and_ten_minutes(attempt: int, seed: int) -> None:
    delivery = replace(DELIVERY, attempt=attempt)
    finished = conclude(delivery, Outcome(Verdict.RETRY, Reason.UNAVAILABLE), RULE, random.Random(seed))
    assert finished.state is DeliveryState.PENDING
    assert 10.0 <= finished.due_in_s <= min(600.0, 10.0 * 2 ** min(attempt, 10))


def test_backoff_has_jitter_and_grows() -> None:
    dice = random.Random(1)

    def wait(attempt: int) -> float:
        return conclude(replace(DELIVERY, attempt=attempt), Outcome(Verdict.RETRY), RULE, dice).due_in_s

    assert len({wait(1) for _ in range(20)}) == 20
    early, late = (sum(wait(attempt) for _ in range(200)) / 200 for attempt in (1, 4))
    assert late > 3 * early


def test_backoff_of_throttling_is_a_minute_by_default() -> None:
    throttled = Outcome(Verdict.RETRY, Reason.THROTTLED)
    assert all(conclude(DELIVERY, throttled, RULE, random.Random(s)).due_in_s >= 60.0 for s in range(20))
    for asked, least in ((25.0, 60.0), (123.0, 123.0)):
        told = replace(throttled, retry_after_s=asked)
        waits = [conclude(DELIVERY, told, RULE, random.Random(s), rate_share=0.5).due_in_s for s in range(20)]
        assert all(least <= wait <= least + 31.0 for wait in waits)
        assert len(set(waits)) == 20, "those that were told the same do not come back at once"


@pytest.mark.parametrize(("asked", "waits"), [(0.0, 10.0), (9.0, 10.0), (700.0, 700.0)])
def test_backoff_retry_after_wins_above_the_minimum(asked: float, waits: float) -> None:
    outcome = Outcome(Verdict.RETRY, Reason.UNAVAILABLE, retry_after_s=asked)
    assert conclude(DELIVERY, outcome, RULE, random.Random(1)).due_in_s == waits


@pytest.mark.parametrize(
    ("delivery", "gives_up"),
    [
        (replace(DELIVERY, ttl_s=10.0), True),
        (replace(DELIVERY, ttl_s=21.0), False),
        (replace(DELIVERY, ttl_s=86_400.0, age_s=3590.1), True),
        (replace(DELIVERY, ttl_s=86_400.0, age_s=3580.0), False),
    ],
)
def test_backoff_beyond_the_ttl_expires(delivery: ClaimedDelivery, gives_up: bool) -> None:
    outcome = Outcome(Verdict.RETRY, Reason.UNAVAILABLE)
    finished = conclude(delivery, outcome, RULE, random.Random(1))  # it waits for 10 to 20 s
    expected = (DeliveryState.DEAD, Reason.RETRIES_EXHAUSTED) if gives_up else (DeliveryState.PENDING, outcome.reason)
    assert (finished.state, finished.reason) == expected


@pytest.mark.parametrize("reason", [Reason.UNAVAILABLE, Reason.THROTTLED])
@pytest.mark.parametrize("ttl_s", [5.0, 60.0, 3600.0, 86_400.0])
@pytest.mark.parametrize("asked", [10.0, 3599.0, 3600.0])
def test_retry_after_does_not_kill_at_the_first_attempt(reason: Reason, ttl_s: float, asked: float) -> None:
    outcome = Outcome(Verdict.RETRY, reason, retry_after_s=asked)
    finished = conclude(replace(DELIVERY, ttl_s=ttl_s), outcome, RULE, random.Random(1))
    assert (finished.state, finished.reason) == (DeliveryState.PENDING, reason)
    assert min(asked, ttl_s) <= finished.due_in_s <= ttl_s, "never before it was asked for, and it expires in its time"


def test_retry_after_is_honoured_within_the_hour_of_retries() -> None:
    outcome = Outcome(Verdict.RETRY, Reason.UNAVAILABLE, retry_after_s=3600.0)
    states = [
        conclude(replace(DELIVERY, ttl_s=86_400.0, age_s=age_s), outcome, RULE, random.Random(1)).state
        for age_s in (0.0, 3600.0, 3601.0)
    ]
    assert states == [DeliveryState.PENDING, DeliveryState.PENDING, DeliveryState.DEAD]


def test_backoff_for_an_access_token_is_at_least_ten_seconds() -> None:
    for asked, least in ((None, 10.0), (2.0, 10.0), (30.0, 30.0)):
        outcome = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, retry_after_s=asked, blame=Blame.ACCESS)
        finished = conclude(DELIVERY, outcome, RULE, random.Random(1))
        assert (finished.state, finished.give_back_attempt) == (DeliveryState.PENDING, True)
        assert least <= finished.due_in_s <= least * 1.2


@pytest.mark.parametrize("ttl_s", [30.0, 0.0, 86_400.0])
def test_backoff_for_misconfiguration_is_bounded_by_the_ttl(ttl_s: float) -> None:
    outcome = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, retry_after_s=3600.0)
    finished = conclude(replace(DELIVERY, ttl_s=ttl_s), outcome, RULE, random.Random(1))
    assert (finished.state, finished.give_back_attempt) == (DeliveryState.PENDING, True)
    assert min(3600.0, ttl_s) <= finished.due_in_s <= min(4320.0, ttl_s)


def test_preflight_never_holds_a_message_for_a_stream() -> None:
    assert fate(MESSAGE, live=True) is None
