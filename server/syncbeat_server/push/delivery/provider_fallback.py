"""Sends a message by the app's provider, behind its gate, and by the fallback where the provider was not reached."""

from __future__ import annotations

import logging

from syncbeat_server.errors import SyncbeatError
from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.delivery.flow_control import record_endpoint
from syncbeat_server.push.model import ClaimedDelivery, Outcome, Reason, Verdict
from syncbeat_server.push.providers import Message, Provider
from syncbeat_server.push.store import queue
from syncbeat_server.storage.postgres.database import Database

_log = logging.getLogger(__name__)


async def send_with_fallback(database: Database, channel: Channel, message: Message) -> Outcome | None:
    """Return the outcome of the provider, or of the fallback if the provider was not reached; None: not admitted."""
    platform = message.delivery.platform
    admission = await channel.gate.enter(platform)
    outcome = None
    if admission is not None:
        try:
            outcome = await _send(channel.provider, message)
        except BaseException:
            admission.release()  # a cancelled attempt says nothing about the provider
            raise
        channel.gate.record_outcome(admission, outcome, platform)
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
