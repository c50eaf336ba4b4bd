"""Ways to reach a device."""

from __future__ import annotations

from typing import Protocol

from syncbeat_server.push.model import ClaimedDelivery, Outcome


class Provider(Protocol):
    """Sends one delivery and says what came of it. Retrying is the queue's business, never a provider's."""

    async def send(self, delivery: ClaimedDelivery) -> Outcome:
        """One attempt. Does not raise for what the other side does: every answer is an Outcome."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
