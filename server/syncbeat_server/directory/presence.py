"""Which devices have a live stream on any process: short-lived marks in Redis. Unknown counts as absent.

Each process has marks of its own and takes back no others: a device whose stream ends on one may have another one
elsewhere. The marks of a process that was killed end by themselves.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.bus import RedisBus

_LIVES_S = 30.0
_REFRESHED_EVERY_S = 10.0

Device = tuple[str, str, str]


class Presence:
    """Marks and asks. `(app, user, device)` is the key."""

    def __init__(self, bus: RedisBus) -> None:
        self._bus = bus
        self._process = secrets.token_hex(8)  # no two processes are taken for one, as process ids of two machines are

    async def mark(self, devices: Sequence[Device]) -> None:
        """These devices have a stream here. Raises DependencyDown."""
        await self._bus.mark_present(map(_key, devices), self._process, _LIVES_S)

    async def unmark(self, devices: Sequence[Device]) -> None:
        """These devices have no stream here any more; elsewhere they may. Raises DependencyDown."""
        await self._bus.mark_absent(map(_key, devices), self._process)

    async def live(self, devices: Sequence[Device]) -> list[bool]:
        """For each device whether it has a stream somewhere; all False when Redis does not answer."""
        try:
            found = await self._bus.present([name(device) for name in (_key, _earlier_key) for device in devices])
        except DependencyDown:
            return [False] * len(devices)
        return [now or earlier for now, earlier in zip(found[: len(devices)], found[len(devices) :], strict=True)]


class PresenceKeeper:
    """Keeps the marks of the streams of this process: at once when one opens or closes, and again and again."""

    def __init__(self, presence: Presence, here: Callable[[], Sequence[Device]], clock: Clock) -> None:
        """`here` names the devices that have a stream on this process now."""
        self._presence = presence
        self._here = here
        self._clock = clock
        self._moved: set[Device] = set()
        self._woken = asyncio.Event()

    def moved(self, device: Device) -> None:
        """A stream of this device opened or closed."""
        self._moved.add(device)
        self._woken.set()

    async def run_refresh(self) -> None:
        """Have every mark renewed before it ends, for ever."""
        while True:
            await self._clock.sleep(_REFRESHED_EVERY_S)
            self._moved.update(self._here())
            self._woken.set()

    async def run(self) -> None:
        """Write the marks, for ever. What Redis does not take now is written with the next refresh."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            moved, self._moved = self._moved, set()
            here = moved.intersection(self._here())
            try:
                await self._presence.mark(list(here))
                await self._presence.unmark(list(moved - here))
            except DependencyDown:
                continue


def _key(device: Device) -> str:
    return "streams:" + "\x1f".join(device)


def _earlier_key(device: Device) -> str:
    # As earlier versions mark a device: their servers run beside this one during an update.
    return "live:" + "\x1f".join(device)
