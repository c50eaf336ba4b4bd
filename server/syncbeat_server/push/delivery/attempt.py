"""Makes one attempt to send a delivery: renders it, has it sent, and tells what is to be recorded."""

from __future__ import annotations

import logging
import random

from syncbeat_server.errors import SyncbeatError
from syncbeat_server.push.content.ack_token import ack_token
from syncbeat_server.push.content.templates import render, render_stored
from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.delivery.dependencies import DOWN_PAUSE_S, DeliveryDependencies
from syncbeat_server.push.delivery.provider_fallback import send_with_fallback
from syncbeat_server.push.model import ClaimedDelivery, Content, DeliveryUpdate, Reason, Verdict
from syncbeat_server.push.policy.retry import RetryRule, conclude, postpone
from syncbeat_server.push.policy.transitions import Event, update
from syncbeat_server.push.providers import Message
from syncbeat_server.push.store import notifications
from syncbeat_server.storage.postgres.database import Database

_log = logging.getLogger(__name__)

_UNKNOWN_APP_S = 60.0
_SPREAD_S = 1.0  # over which come back the few that were claimed when their gate closed; all others wait unclaimed

_rng = random.SystemRandom()


async def attempt(deps: DeliveryDependencies, rule: RetryRule, delivery: ClaimedDelivery) -> DeliveryUpdate:
    """Send a delivery once, and return what is to be recorded of it."""
    channel = deps.channels.get(delivery.app_id)
    if channel is None:
        return postpone(delivery, Reason.PROVIDER_CONFIG, _UNKNOWN_APP_S)
    try:
        message = await _message(deps.database, delivery, channel)
    except SyncbeatError as error:
        _log.warning("cannot look up a text now", extra={"reason": error.reason})
        return postpone(delivery, Reason.NONE, DOWN_PAUSE_S)
    if message is None:
        return update(delivery, Event.REJECT, Reason.REJECTED)
    outcome = await send_with_fallback(deps.database, channel, message)
    if outcome is None:
        return _turned_away(delivery, channel)
    deps.metrics.attempt_ended(outcome.reason or outcome.verdict)
    share = channel.gate.rate_share if outcome.verdict is Verdict.RETRY else 1.0
    return conclude(delivery, outcome, rule, _rng, share)


def _turned_away(delivery: ClaimedDelivery, channel: Channel) -> DeliveryUpdate:
    """Return the update of a delivery that the gate did not admit."""
    app_s, platform_s = channel.gate.closed_for_s(), channel.gate.closed_for_s(delivery.platform)
    reason = Reason.PROVIDER_CONFIG if app_s <= 0 < platform_s else Reason.UNAVAILABLE
    return postpone(delivery, reason, platform_s + _rng.uniform(0.0, _SPREAD_S))


async def _message(database: Database, delivery: ClaimedDelivery, channel: Channel) -> Message | None:
    """Return the message to send; None if its template is gone and no rendered text was stored."""
    # Of a muted type only a silent wake-up comes here, which is to stay silent.
    content = Content(data=delivery.content.data) if delivery.muted else delivery.content
    try:
        rendered = render(content, channel.templates, delivery.locale)
    except KeyError as missing:
        async with database.connection() as conn:
            texts = await notifications.stored_texts(conn, delivery)
        _log.warning("a template or a variable of it is gone", extra={"missing": str(missing), "kept": bool(texts)})
        if not texts:
            return None
        rendered = render_stored(content, texts, delivery.locale)
    return Message(delivery, rendered, ack_token(channel.ack_secret, delivery.app_id, delivery.delivery_id))
