"""Which devices have a live stream on any process: short-lived keys in Redis. Unknown counts as absent."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis import RedisBus

LIVES_S = 30.0
REFRESHED_EVERY_S = 10.0

Device = tuple[str, str, str]


class Presence:
    """Marks and asks. `(app, user, device)` is the key."""

    def __init__(self, bus: RedisBus) -> None:
        self._bus = bus

    async def mark(self, devices: Sequence[Device]) -> None:
        """These devices have a stream here. Raises DependencyDown."""
        await self._bus.mark_present(map(_key, devices), LIVES_S)

    async def unmark(self, devices: Sequence[Device]) -> None:
        """These devices have no stream here any more. Raises DependencyDown."""
        await self._bus.mark_absent(map(_key, devices))

    async def live(self, devices: Sequence[Device]) -> list[bool]:
        """For each device whether it has a stream somewhere; all False when Redis does not answer."""
        try:
            return await self._bus.present([_key(device) for device in devices])
        except DependencyDown:
            return [False] * len(devices)


def _key(device: Device) -> str:
    return "syncbeat:live:" + "\x1f".join(device)
