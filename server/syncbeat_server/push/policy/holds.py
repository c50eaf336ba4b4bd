"""Decides which claimed deliveries need no attempt, or none yet. Pure."""

from __future__ import annotations

from datetime import datetime

from syncbeat_server.push.model import ClaimedDelivery, DeliveryUpdate, Kind, Reason
from syncbeat_server.push.policy import quiet_hours
from syncbeat_server.push.policy.retry import RetryRule
from syncbeat_server.push.policy.transitions import Event, update


def hold_or_end(delivery: ClaimedDelivery, has_stream: bool, now: datetime, rule: RetryRule) -> DeliveryUpdate | None:
    """Return the update of a delivery that is not to be attempted now, or None for one that is.

    `has_stream`: its device has a live stream, which is given `rule.grace_s` to show the change without a push.
    """
    ended = _end_without_attempt(delivery)
    if ended is not None:
        return ended
    if delivery.kind is Kind.SYNC and has_stream and not delivery.held_for_stream:
        return update(delivery, Event.HOLD, Reason.LIVE_STREAM, due_in_s=rule.grace_s)
    if delivery.quiet is not None and delivery.content.visible and not delivery.critical:
        wait_s = quiet_hours.quiet_for_s(delivery.quiet, delivery.time_zone, now)
        if wait_s > 0:
            return hold(delivery, Reason.QUIET_HOURS, wait_s)
    return None


def hold(delivery: ClaimedDelivery, reason: Reason, seconds: float) -> DeliveryUpdate:
    """Return the update that holds a delivery back; the claim does not count as an attempt.

    Its time to live stands still meanwhile, unless the caller named one: then it expires on time all the same.
    """
    return update(
        delivery,
        Event.HOLD,
        reason,
        due_in_s=seconds if delivery.patient else min(seconds, delivery.ttl_s),
        extends_ttl=delivery.patient,
    )


def _end_without_attempt(delivery: ClaimedDelivery) -> DeliveryUpdate | None:
    if delivery.superseded:
        return update(delivery, Event.SKIP, Reason.MERGED)
    if delivery.ttl_s <= 0:
        return update(delivery, Event.EXPIRE)
    if delivery.user_disabled:
        return update(delivery, Event.DROP, Reason.USER_DISABLED)
    if delivery.kind is Kind.SYNC and delivery.already_seen:
        return update(delivery, Event.DROP, Reason.ALREADY_SEEN)
    if not delivery.registration_token:
        return update(delivery, Event.LACK_TOKEN)
    if delivery.muted and not delivery.silent:
        return update(delivery, Event.SKIP, Reason.MUTED)
    return None
