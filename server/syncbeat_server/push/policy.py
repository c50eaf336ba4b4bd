"""What becomes of a delivery: before an attempt, and after it. Pure.

Retries follow FCM's own rules (firebase.google.com, "Best practices when using FCM at scale"): never before 10 s, twice
as long each time, jittered; Retry-After wins; 429 waits a minute; what fails for an hour is an outage or a wrong class.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from syncbeat_server.push.model import (
    ClaimedDelivery,
    DeliveryState,
    Finished,
    Kind,
    Outcome,
    Reason,
    Verdict,
)

_GIVE_UP_AFTER_S = 3600.0
_LONGEST_WAIT_S = 600.0
_THROTTLED_FACTOR = 6.0  # of the first wait: a minute for 10 s


@dataclass(frozen=True, slots=True)
class RetryRule:
    """`first_s`: the least wait before a retry. `grace_s`: how long a device with a live stream may take to show it."""

    first_s: float = 10.0
    grace_s: float = 5.0


def triage(delivery: ClaimedDelivery, live: bool, rule: RetryRule) -> Finished | None:
    """What makes an attempt needless; None when it must be made."""
    if delivery.ttl_s <= 0:
        return Finished(delivery, DeliveryState.EXPIRED, Reason.NONE, give_back_attempt=True)
    if delivery.shut_out:
        return Finished(delivery, DeliveryState.CANCELLED, Reason.USER_DISABLED, give_back_attempt=True)
    if delivery.kind is Kind.SYNC and delivery.seen:
        return Finished(delivery, DeliveryState.CANCELLED, Reason.ALREADY_SEEN, give_back_attempt=True)
    if not delivery.registration_token:
        return Finished(delivery, DeliveryState.DEAD, Reason.NO_TOKEN, give_back_attempt=True)
    if delivery.kind is Kind.SYNC and live and not delivery.held:
        return Finished(delivery, DeliveryState.HELD, Reason.LIVE_STREAM, due_in_s=rule.grace_s, give_back_attempt=True)
    return None


def conclude(delivery: ClaimedDelivery, outcome: Outcome, rule: RetryRule, dice: random.Random) -> Finished:
    """How a delivery goes on after an attempt."""
    match outcome.verdict:
        case Verdict.SENT:
            return Finished(delivery, DeliveryState.SENT, Reason.NONE, outcome.provider_message_id)
        case Verdict.DEAD_TOKEN:
            return Finished(delivery, DeliveryState.DEAD, outcome.reason)
        case Verdict.REJECTED:
            return Finished(delivery, DeliveryState.DEAD, outcome.reason)
        case Verdict.RETRY:
            return _retry(delivery, outcome, rule, dice)


def _retry(delivery: ClaimedDelivery, outcome: Outcome, rule: RetryRule, dice: random.Random) -> Finished:
    longest = min(_LONGEST_WAIT_S, rule.first_s * 2.0 ** min(delivery.attempt, 20))
    wait = dice.uniform(rule.first_s, max(rule.first_s, longest))
    if outcome.reason is Reason.THROTTLED:
        wait = max(wait, rule.first_s * _THROTTLED_FACTOR)
    if outcome.retry_after_s is not None:
        wait = max(rule.first_s, outcome.retry_after_s)
    if wait >= delivery.ttl_s or delivery.age_s + wait > _GIVE_UP_AFTER_S:
        return Finished(delivery, DeliveryState.DEAD, Reason.RETRIES_EXHAUSTED)
    return Finished(delivery, DeliveryState.PENDING, outcome.reason, due_in_s=wait)
