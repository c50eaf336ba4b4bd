"""Makes attempts: through the app's gate to its provider, and records what came of each."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping

from syncbeat_server.push import policy
from syncbeat_server.push.channel import Channel
from syncbeat_server.push.model import ClaimedDelivery, Content, DeliveryState, Finished, Outcome, Reason, Verdict
from syncbeat_server.push.policy import RetryRule
from syncbeat_server.push.providers import Message, Provider
from syncbeat_server.push.receipts import ack_token
from syncbeat_server.push.recorder import Recorder
from syncbeat_server.push.templates import in_locale

_log = logging.getLogger(__name__)

_UNKNOWN_APP_S = 60.0
_SPREAD_S = 5.0


class Sender:
    """Sends claimed deliveries, one attempt each."""

    def __init__(
        self,
        channels: Mapping[str, Channel],
        recorder: Recorder,
        rule: RetryRule,
        attempt_ended: Callable[[str], None],
    ) -> None:
        """`attempt_ended(outcome)` is told of each attempt (the metrics hook)."""
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
            return policy.put_off(delivery, Reason.PROVIDER_CONFIG, _UNKNOWN_APP_S)
        try:
            message = _message(delivery, channel)
        except KeyError as missing:
            _log.warning("a template or a variable of it is gone", extra={"missing": str(missing)})
            return Finished(delivery, DeliveryState.DEAD, Reason.REJECTED)
        outcome = await self._through_gate(channel, message)
        if outcome is None:
            wait_s = channel.gate.closed_for_s(delivery.platform) + self._dice.uniform(0.0, _SPREAD_S)
            of_platform = channel.gate.closed_for_s() <= 0 < channel.gate.closed_for_s(delivery.platform)
            return policy.put_off(delivery, Reason.PROVIDER_CONFIG if of_platform else Reason.UNAVAILABLE, wait_s)
        self._attempt_ended(outcome.reason or outcome.verdict)
        return policy.conclude(delivery, outcome, self._rule, self._dice, channel.gate.share)

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
        if channel.fallback is not None and (outcome is None or _unreached(outcome)):
            outcome = await _ask(channel.fallback, message)
        return outcome


def _message(delivery: ClaimedDelivery, channel: Channel) -> Message:
    content = Content(data=delivery.content.data) if delivery.muted else delivery.content
    return Message(
        delivery,
        in_locale(content, channel.templates, delivery.locale),
        ack_token(channel.ack_secret, delivery.app_id, delivery.delivery_id),
    )


async def _ask(provider: Provider, message: Message) -> Outcome:
    try:
        return await provider.send(message)
    except Exception:  # noqa: BLE001  # a provider's fault must not cost the delivery, nor the worker
        _log.exception("a provider raised", extra={"delivery_id": message.delivery.delivery_id})
        return Outcome(Verdict.RETRY, Reason.AMBIGUOUS)


def _unreached(outcome: Outcome) -> bool:
    # Not when it is ambiguous: the other provider's copy would replace nothing.
    return outcome.verdict is Verdict.RETRY and outcome.reason in (Reason.UNAVAILABLE, Reason.PROVIDER_CONFIG)
