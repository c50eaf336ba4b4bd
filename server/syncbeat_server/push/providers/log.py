"""Writes deliveries to the log, for an app without FCM credentials."""

from __future__ import annotations

import logging

from syncbeat_server.push.model import Outcome, Verdict
from syncbeat_server.push.providers import Message

_log = logging.getLogger(__name__)


class LogProvider:
    """Counts every delivery as sent."""

    async def send(self, message: Message) -> Outcome:
        """Log the device that would have been woken, but not the content, which may be private."""
        _log.info(
            "delivery (no FCM credentials: logged only)",
            extra={
                "delivery_id": message.delivery.delivery_id,
                "user_id": message.delivery.user_id,
                "device_id": message.delivery.device_id,
            },
        )
        return Outcome(Verdict.SENT)

    async def close(self) -> None:
        """Do nothing: there is no connection."""
