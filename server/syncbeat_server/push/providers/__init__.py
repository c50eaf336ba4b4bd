"""Defines a way to reach a device; each folder is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from syncbeat_server.defaults import DELIVERY_TIMEOUT_S
from syncbeat_server.push.model import ClaimedDelivery, Content, Outcome


@dataclass(frozen=True, slots=True)
class Message:
    """Input of a provider: a delivery, the content to show on its device, and the token that acknowledges it."""

    delivery: ClaimedDelivery
    content: Content
    ack_token: str


@dataclass(frozen=True, slots=True)
class HttpRule:
    """Limits on a provider's connections: `timeout_s` is for one attempt with its answer; for `proxy` see `proxy_for`.

    FCM's internal calls take up to 10 s, so a shorter time-out makes duplicates ("Best practices ... at scale").
    """

    max_in_flight: int
    timeout_s: float = DELIVERY_TIMEOUT_S
    proxy: str = ""


class Provider(Protocol):
    """Sends one message and returns the outcome. Retrying is the queue's business, never a provider's."""

    async def send(self, message: Message) -> Outcome:
        """Make one attempt. Does not raise for what the other side does: every answer is an Outcome."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
