"""Ways to reach a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from syncbeat_server.push.model import ClaimedDelivery, Content, Outcome


@dataclass(frozen=True, slots=True)
class Message:
    """What a provider sends: a delivery, what it shows on its device, and the token that acknowledges it."""

    delivery: ClaimedDelivery
    content: Content
    ack_token: str


class Provider(Protocol):
    """Sends one message and says what came of it. Retrying is the queue's business, never a provider's."""

    async def send(self, message: Message) -> Outcome:
        """One attempt. Does not raise for what the other side does: every answer is an Outcome."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
