"""Writes deliveries to the log: for an app without FCM credentials."""

from __future__ import annotations

import logging

from syncbeat_server.push.model import ClaimedDelivery, Outcome, Verdict

_log = logging.getLogger(__name__)


class LogProvider:
    """Every delivery counts as sent."""

    async def send(self, delivery: ClaimedDelivery) -> Outcome:
        """Log which device would have been woken; not with what, which may be private."""
        _log.info(
            "delivery (no FCM credentials: logged only)",
            extra={
                "delivery_id": delivery.delivery_id,
                "user_id": delivery.user_id,
                "device_id": delivery.device_id,
            },
        )
        return Outcome(Verdict.SENT)

    async def close(self) -> None:
        """Nothing to give back."""
