"""What becomes of a delivery: before an attempt, and after it. Pure.

Retries follow FCM's own rules (firebase.google.com, "Best practices when using FCM at scale"): never before 10 s, twice
as long each time, jittered; Retry-After wins, up to an hour; 429 waits a minute; what fails for an hour is an outage or
a wrong class. What the provider asks to wait makes no message give up: it goes on after that, or expires.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import datetime

from syncbeat_server.defaults import DELIVERY_FIRST_RETRY_S, DELIVERY_GIVE_UP_S, STREAM_GRACE_S
from syncbeat_server.push.model import (
    Blame,
    ClaimedDelivery,
    DeliveryState,
    Finished,
    Kind,
    Outcome,
    Reason,
    Verdict,
)
from syncbeat_server.push.policy import quiet_hours
from syncbeat_server.push.policy.resend import ResendRule

_LONGEST_WAIT_S = 600.0
_THROTTLED_FACTOR = 6.0  # of the first wait: a minute for 10 s
_CONFIG_WAIT_S = 60.0
MAX_MOVES = 3


@dataclass(frozen=True, slots=True)
class RetryRule:
    """`first_s`: the least wait before a retry, `give_up_s`: how long it is tried after the first attempt.

    `grace_s`: how long a device with a live stream may take to show it. `resend`: when what was sent is sent again.
    """

    first_s: float = DELIVERY_FIRST_RETRY_S
    grace_s: float = STREAM_GRACE_S
    give_up_s: float = DELIVERY_GIVE_UP_S
    resend: ResendRule = field(default_factory=ResendRule)


def triage(delivery: ClaimedDelivery, live: bool, now: datetime, rule: RetryRule) -> Finished | None:
    """What makes an attempt needless, or untimely; None when it must be made."""
    end = _end_without_attempt(delivery)
    if end is not None:
        return Finished(delivery, *end, give_back_attempt=True)
    if delivery.kind is Kind.SYNC and live and not delivery.held:
        return Finished(delivery, DeliveryState.HELD, Reason.LIVE_STREAM, due_in_s=rule.grace_s, give_back_attempt=True)
    if delivery.quiet is not None and delivery.content.visible and not delivery.critical:
        wait_s = quiet_hours.quiet_for_s(delivery.quiet, delivery.time_zone, now)
        if wait_s > 0:
            return hold(delivery, Reason.QUIET_HOURS, wait_s)
    return None


def hold(delivery: ClaimedDelivery, reason: Reason, seconds: float) -> Finished:
    """It waits, and the attempt does not count. What its caller wants within a time expires in it all the same."""
    return Finished(
        delivery,
        DeliveryState.HELD,
        reason,
        due_in_s=seconds if delivery.patient else min(seconds, delivery.ttl_s),
        give_back_attempt=True,
        lives_on=delivery.patient,
    )


def put_off(delivery: ClaimedDelivery, reason: Reason, seconds: float) -> Finished:
    """It could not be tried now, which is not its fault: later, if it lives, and the attempt does not count."""
    due_in_s = min(seconds, max(0.0, delivery.ttl_s))
    return Finished(delivery, DeliveryState.PENDING, reason, due_in_s=due_in_s, give_back_attempt=True)


def conclude(
    delivery: ClaimedDelivery, outcome: Outcome, rule: RetryRule, dice: random.Random, share: float = 1.0
) -> Finished:
    """How a delivery goes on after an attempt; throttled ones spread by `share`, the part of its rate the app uses."""
    match outcome.verdict:
        case Verdict.SENT:
            return Finished(delivery, DeliveryState.SENT, Reason.NONE, outcome.provider_message_id)
        case Verdict.DEAD_TOKEN | Verdict.REJECTED:
            return Finished(delivery, DeliveryState.DEAD, outcome.reason)
        case Verdict.INVALID_TOKEN:
            return Finished(delivery, DeliveryState.DEAD, outcome.reason, invalid_token=True)
        case Verdict.RETRY if delivery.at_once:
            return Finished(delivery, DeliveryState.EXPIRED, Reason.NONE)
        case Verdict.RETRY if outcome.reason is Reason.PROVIDER_CONFIG:
            least_s = rule.first_s if outcome.blame is Blame.ACCESS else _CONFIG_WAIT_S
            wait_s = max(least_s, outcome.retry_after_s or 0.0) * dice.uniform(1.0, 1.2)
            return put_off(delivery, outcome.reason, wait_s)
        case Verdict.RETRY:
            return _retry(delivery, outcome, rule, dice, share)


def _retry(delivery: ClaimedDelivery, outcome: Outcome, rule: RetryRule, dice: random.Random, share: float) -> Finished:
    longest = min(_LONGEST_WAIT_S, rule.first_s * 2.0 ** min(delivery.attempt, 20))
    wait = dice.uniform(rule.first_s, max(rule.first_s, longest))
    asked = outcome.retry_after_s
    if outcome.reason is Reason.THROTTLED:
        least = rule.first_s * _THROTTLED_FACTOR
        wait = max(least, asked or 0.0) + dice.uniform(0.0, least * (1.0 - share) + 1.0)
    elif asked is not None:
        wait = max(rule.first_s, asked)
    told = asked is not None and asked >= rule.first_s
    gives_up = delivery.age_s > rule.give_up_s if told else delivery.age_s + wait > rule.give_up_s
    if gives_up or (wait >= delivery.ttl_s and not told):
        return Finished(delivery, DeliveryState.DEAD, Reason.RETRIES_EXHAUSTED)
    wait = min(wait, delivery.ttl_s)  # told to wait for longer than it lives, it expires
    return Finished(delivery, DeliveryState.PENDING, outcome.reason, due_in_s=wait)


def _end_without_attempt(delivery: ClaimedDelivery) -> tuple[DeliveryState, Reason] | None:
    if delivery.superseded:
        return DeliveryState.SUPPRESSED, Reason.MERGED
    if delivery.ttl_s <= 0:
        return DeliveryState.EXPIRED, Reason.NONE
    if delivery.shut_out:
        return DeliveryState.CANCELLED, Reason.USER_DISABLED
    if delivery.kind is Kind.SYNC and delivery.seen:
        return DeliveryState.CANCELLED, Reason.ALREADY_SEEN
    if not delivery.registration_token:
        return DeliveryState.DEAD, Reason.NO_TOKEN
    if delivery.muted and not delivery.wakes:
        return DeliveryState.SUPPRESSED, Reason.MUTED
    return None
