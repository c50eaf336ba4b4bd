"""Makes one attempt to send a delivery: renders it, passes the app's gate, asks its provider and the fallback."""

from __future__ import annotations

import logging
import random

from syncbeat_server.errors import SyncbeatError
from syncbeat_server.push.content.ack_token import ack_token
from syncbeat_server.push.content.templates import render, render_stored
from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.delivery.dependencies import DOWN_PAUSE_S, DeliveryDependencies
from syncbeat_server.push.delivery.flow_control import record_endpoint
from syncbeat_server.push.model import ClaimedDelivery, Content, DeliveryUpdate, Outcome, Reason, Verdict
from syncbeat_server.push.policy.retry import RetryRule, conclude, postpone
from syncbeat_server.push.policy.transitions import Event, update
from syncbeat_server.push.providers import Message, Provider
from syncbeat_server.push.store import queue
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
    outcome = await _send_through_gate(deps.database, channel, message)
    if outcome is None:
        return _turned_away(delivery, channel)
    deps.metrics.attempt_ended(outcome.reason or outcome.verdict)
    return conclude(delivery, outcome, rule, _rng, channel.gate.rate_share)


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
            texts = await queue.stored_texts(conn, delivery)
        _log.warning("a template or a variable of it is gone", extra={"missing": str(missing), "kept": bool(texts)})
        if not texts:
            return None
        rendered = render_stored(content, texts, delivery.locale)
    return Message(delivery, rendered, ack_token(channel.ack_secret, delivery.app_id, delivery.delivery_id))


async def _send_through_gate(database: Database, channel: Channel, message: Message) -> Outcome | None:
    """Return the outcome of the provider, or of the fallback if the provider was not reached; None: not admitted."""
    platform = message.delivery.platform
    admission = await channel.gate.enter(platform)
    outcome = None
    if admission is not None:
        began = channel.gate.monotonic()
        try:
            outcome = await _send(channel.provider, message)
            channel.gate.record_outcome(admission, outcome, platform, channel.gate.monotonic() - began)
        finally:
            admission.release()  # a cancelled attempt says nothing about the provider
    if channel.fallback is None or not (outcome is None or _not_reached(outcome)):
        return outcome
    if outcome is not None and not await _still_wanted(database, message.delivery):
        return outcome
    return await _send_by_fallback(channel, channel.fallback, message) or outcome


async def _send_by_fallback(channel: Channel, fallback: Provider, message: Message) -> Outcome | None:
    """Return the outcome of the fallback; None while its breaker admits nothing."""
    if channel.fallback_breaker is None:
        return await _send(fallback, message)
    permit = await channel.fallback_breaker.acquire()
    if permit is None:
        return None
    try:
        outcome = await _send(fallback, message)
        record_endpoint(permit, outcome)
    finally:
        permit.release()
    return outcome


async def _send(provider: Provider, message: Message) -> Outcome:
    try:
        return await provider.send(message)
    except Exception:  # noqa: BLE001  # a provider's fault must not cost the delivery, nor the worker
        _log.exception("a provider raised", extra={"delivery_id": message.delivery.delivery_id})
        return Outcome(Verdict.RETRY, Reason.AMBIGUOUS)


async def _still_wanted(database: Database, delivery: ClaimedDelivery) -> bool:
    try:
        async with database.connection() as conn:
            return await queue.is_still_wanted(conn, delivery)
    except SyncbeatError as error:
        _log.warning("cannot look at a delivery now", extra={"reason": error.reason})
        return False  # it is tried again when the database answers


def _not_reached(outcome: Outcome) -> bool:
    # Not if it is ambiguous: the fallback's copy would not replace that of the provider on the device.
    return outcome.verdict is Verdict.RETRY and outcome.reason in (Reason.UNAVAILABLE, Reason.PROVIDER_CONFIG)
