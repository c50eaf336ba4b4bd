"""Bounds how many deliveries of each app a worker may claim: by the app's gate and by its shared rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.storage.redis.token_bucket import TokenBucket

_CLAIM_BATCH = 200


class ClaimRoom(NamedTuple):
    """Number of deliveries that may be claimed by app, and the seconds until another app may have room; 0: unknown."""

    by_app: dict[str, int]
    retry_in_s: float


class ClaimBudget:
    """Spends the rates that apps share, and keeps what was granted and not used for later claims."""

    def __init__(self, channels: Mapping[str, Channel], allowance: TokenBucket) -> None:
        self._channels = channels
        self._allowance = allowance
        self._granted: Counter[str] = Counter()

    async def room(self) -> ClaimRoom:
        """Return how many of each app may be claimed now, after asking for more of its rate where that is short."""
        by_app, waits = {}, []
        for app_id, channel in list(self._channels.items()):
            free = min(channel.free_slots, _CLAIM_BATCH)
            if free <= 0:
                waits.append(channel.gate.closed_for_s())
                continue
            if self._granted[app_id] < free:
                missing = free - self._granted[app_id]
                grant = await self._allowance.acquire(channel.rate_key, missing, 1 / channel.gate.rate_share)
                self._granted[app_id] += grant.count
                waits.append(grant.wait_s)
            if self._granted[app_id] > 0:
                by_app[app_id] = min(free, self._granted[app_id])
        return ClaimRoom(by_app, min((wait_s for wait_s in waits if wait_s > 0), default=0.0))

    def granted_room(self) -> dict[str, int]:
        """Return how many more of each app may be claimed out of what was granted already."""
        return {app_id: min(channel.free_slots, self._granted[app_id]) for app_id, channel in self._channels.items()}

    def spend(self, app_id: str) -> None:
        """Count an attempt against what was granted."""
        self._granted[app_id] -= 1
