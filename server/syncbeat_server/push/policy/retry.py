"""Decides about a delivery after an attempt: sent, given up, or retried with exponential backoff. Pure.

Retries follow FCM's own rules (firebase.google.com, "Best practices when using FCM at scale"): wait at least 10 s,
double the wait each time, add jitter; obey Retry-After, up to an hour; wait a minute after a 429; give up after an hour
of failures, because that is an outage or a request that will never succeed. A wait that the provider asks for never
makes a message give up: it is retried after that, or expires.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from syncbeat_server.defaults import DELIVERY_FIRST_RETRY_S, DELIVERY_GIVE_UP_S, STREAM_GRACE_S
from syncbeat_server.push.model import Blame, ClaimedDelivery, DeliveryUpdate, Outcome, Reason, Verdict
from syncbeat_server.push.policy.resend import ResendRule
from syncbeat_server.push.policy.transitions import Event, update

MAX_REDIRECTS = 3
"""Number of newer registration tokens that one delivery follows."""

_LONGEST_WAIT_S = 600.0
_THROTTLED_FACTOR = 6.0  # of the first wait: a minute for 10 s
_CONFIG_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class RetryRule:
    """Waits between attempts, in seconds.

    `first_s` is the least wait before a retry, `give_up_s` the time since the first attempt after which a delivery is
    given up. `grace_s` is the time that a live stream gets to show a change. `resend` says when a wake-up that was sent
    and not answered is sent again.
    """

    first_s: float = DELIVERY_FIRST_RETRY_S
    grace_s: float = STREAM_GRACE_S
    give_up_s: float = DELIVERY_GIVE_UP_S
    resend: ResendRule = field(default_factory=ResendRule)


def postpone(delivery: ClaimedDelivery, reason: Reason, seconds: float) -> DeliveryUpdate:
    """Return the update of a delivery that could not be attempted for reasons of ours: later, and not counted."""
    return update(delivery, Event.POSTPONE, reason, due_in_s=min(seconds, max(0.0, delivery.ttl_s)))


def conclude(
    delivery: ClaimedDelivery, outcome: Outcome, rule: RetryRule, rng: random.Random, rate_share: float = 1.0
) -> DeliveryUpdate:
    """Return the update of a delivery after an attempt.

    `rate_share` is the share of its rate that the app may use: the smaller it is, the further retries after a 429 are
    spread.
    """
    match outcome.verdict:
        case Verdict.SENT:
            return update(delivery, Event.SEND, provider_message_id=outcome.provider_message_id)
        case Verdict.DEAD_TOKEN | Verdict.REJECTED:
            return update(delivery, Event.REJECT, outcome.reason)
        case Verdict.INVALID_TOKEN:
            return update(delivery, Event.REJECT, outcome.reason, invalid_token=True)
        case Verdict.RETRY if delivery.now_or_never:
            return update(delivery, Event.MISS)
        case Verdict.RETRY if outcome.reason is Reason.PROVIDER_CONFIG:
            least_s = rule.first_s if outcome.blame is Blame.ACCESS else _CONFIG_WAIT_S
            wait_s = max(least_s, outcome.retry_after_s or 0.0) * rng.uniform(1.0, 1.2)
            return postpone(delivery, outcome.reason, wait_s)
        case Verdict.RETRY:
            return _retry(delivery, outcome, rule, rng, rate_share)


def _retry(
    delivery: ClaimedDelivery, outcome: Outcome, rule: RetryRule, rng: random.Random, rate_share: float
) -> DeliveryUpdate:
    longest_s = min(_LONGEST_WAIT_S, rule.first_s * 2.0 ** min(delivery.attempt, 20))
    wait_s = rng.uniform(rule.first_s, max(rule.first_s, longest_s))
    asked_s = outcome.retry_after_s
    if outcome.reason is Reason.THROTTLED:
        least_s = rule.first_s * _THROTTLED_FACTOR
        wait_s = max(least_s, asked_s or 0.0) + rng.uniform(0.0, least_s * (1.0 - rate_share) + 1.0)
    elif asked_s is not None:
        wait_s = max(rule.first_s, asked_s)
    asked_to_wait = asked_s is not None and asked_s >= rule.first_s
    gives_up = delivery.age_s > rule.give_up_s if asked_to_wait else delivery.age_s + wait_s > rule.give_up_s
    if gives_up or (wait_s >= delivery.ttl_s and not asked_to_wait):
        return update(delivery, Event.REJECT, Reason.RETRIES_EXHAUSTED)
    # A delivery that is asked to wait for longer than it lives expires.
    return update(delivery, Event.RETRY, outcome.reason, due_in_s=min(wait_s, delivery.ttl_s))
