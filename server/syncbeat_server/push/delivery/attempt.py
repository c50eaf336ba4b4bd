"""Makes attempts: through the app's gate to its provider, and records what came of each."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping

from syncbeat_server.errors import SyncbeatError
from syncbeat_server.push.content.ack_token import ack_token
from syncbeat_server.push.content.templates import as_accepted, in_locale
from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.delivery.outcomes import Recorder
from syncbeat_server.push.model import ClaimedDelivery, Content, DeliveryState, Finished, Outcome, Reason, Verdict
from syncbeat_server.push.policy import decisions
from syncbeat_server.push.policy.decisions import RetryRule
from syncbeat_server.push.providers import Message, Provider
from syncbeat_server.push.store import queue
from syncbeat_server.storage.postgres.database import Database

_log = logging.getLogger(__name__)

_DOWN_PAUSE_S = 0.5
_UNKNOWN_APP_S = 60.0
_SPREAD_S = 5.0


class Sender:
    """Sends claimed deliveries, one attempt each."""

    def __init__(
        self,
        database: Database,
        channels: Mapping[str, Channel],
        recorder: Recorder,
        rule: RetryRule,
        attempt_ended: Callable[[str], None],
    ) -> None:
        """`attempt_ended(outcome)` is told of each attempt (the metrics hook)."""
        self._database = database
        self._channels = channels
        self._recorder = recorder
        self._rule = rule
        self._attempt_ended = attempt_ended
        self._dice = random.SystemRandom()

    async def attempt(self, delivery: ClaimedDelivery) -> None:
        """One attempt, recorded."""
        await self._recorder.record(await self._made(delivery))

    async def _made(self, delivery: ClaimedDelivery) -> Finished:
        channel = self._channels.get(delivery.app_id)
        if channel is None:
            return decisions.put_off(delivery, Reason.PROVIDER_CONFIG, _UNKNOWN_APP_S)
        try:
            message = await self._message(delivery, channel)
        except SyncbeatError as error:
            _log.warning("cannot look up a text now", extra={"reason": error.reason})
            return decisions.put_off(delivery, Reason.NONE, _DOWN_PAUSE_S)
        if message is None:
            return Finished(delivery, DeliveryState.DEAD, Reason.REJECTED)
        outcome = await self._through_gate(channel, message)
        if outcome is None:
            wait_s = channel.gate.closed_for_s(delivery.platform) + self._dice.uniform(0.0, _SPREAD_S)
            of_platform = channel.gate.closed_for_s() <= 0 < channel.gate.closed_for_s(delivery.platform)
            return decisions.put_off(delivery, Reason.PROVIDER_CONFIG if of_platform else Reason.UNAVAILABLE, wait_s)
        self._attempt_ended(outcome.reason or outcome.verdict)
        return decisions.conclude(delivery, outcome, self._rule, self._dice, channel.gate.share)

    async def _message(self, delivery: ClaimedDelivery, channel: Channel) -> Message | None:
        # Of a muted type only a silent wake-up comes here, which is to stay silent.
        content = Content(data=delivery.content.data) if delivery.muted else delivery.content
        try:
            told = in_locale(content, channel.templates, delivery.locale)
        except KeyError as missing:
            async with self._database.connection() as conn:
                texts = await queue.texts_as_accepted(conn, delivery)
            _log.warning("a template or a variable of it is gone", extra={"missing": str(missing), "kept": bool(texts)})
            if not texts:
                return None
            told = as_accepted(content, texts, delivery.locale)
        return Message(delivery, told, ack_token(channel.ack_secret, delivery.app_id, delivery.delivery_id))

    async def _still_wanted(self, delivery: ClaimedDelivery) -> bool:
        try:
            async with self._database.connection() as conn:
                return await queue.still_wanted(conn, delivery)
        except SyncbeatError as error:
            _log.warning("cannot look at a delivery now", extra={"reason": error.reason})
            return False  # it is tried again when the database answers

    async def _through_gate(self, channel: Channel, message: Message) -> Outcome | None:
        platform = message.delivery.platform
        permit = channel.gate.enter(platform)
        outcome = None
        if permit is not None:
            try:
                outcome = await _ask(channel.provider, message)
                channel.gate.learned(permit, outcome, platform)
            finally:
                permit.release()  # nothing was learned of an attempt that was cancelled
        if channel.fallback is None or not (outcome is None or _unreached(outcome)):
            return outcome
        if outcome is not None and not await self._still_wanted(message.delivery):
            return outcome
        return await _ask(channel.fallback, message)


async def _ask(provider: Provider, message: Message) -> Outcome:
    try:
        return await provider.send(message)
    except Exception:  # noqa: BLE001  # a provider's fault must not cost the delivery, nor the worker
        _log.exception("a provider raised", extra={"delivery_id": message.delivery.delivery_id})
        return Outcome(Verdict.RETRY, Reason.AMBIGUOUS)


def _unreached(outcome: Outcome) -> bool:
    # Not when it is ambiguous: the other provider's copy would replace nothing.
    return outcome.verdict is Verdict.RETRY and outcome.reason in (Reason.UNAVAILABLE, Reason.PROVIDER_CONFIG)
