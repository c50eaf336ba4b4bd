"""Marks the devices that have a live stream on any process, in Redis. Unknown counts as absent.

Each process has marks of its own and deletes no others: a device whose stream ends on one process may have another
stream elsewhere. The marks of a process that was killed expire.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.bus import RedisBus

_EXPIRES_S = 30.0
_REFRESH_EVERY_S = 10.0

Device = tuple[str, str, str]


class Presence:
    """Reads and writes the marks. Their key is `(app, user, device)`."""

    def __init__(self, bus: RedisBus) -> None:
        self._bus = bus
        self._process = secrets.token_hex(8)  # unlike process ids, unique across machines

    async def mark(self, devices: Sequence[Device]) -> None:
        """Mark devices that have a stream on this process. Raises DependencyDown."""
        await self._bus.mark_present(map(_key, devices), self._process, _EXPIRES_S)

    async def unmark(self, devices: Sequence[Device]) -> None:
        """Delete this process's marks of devices; they may have streams elsewhere. Raises DependencyDown."""
        await self._bus.mark_absent(map(_key, devices), self._process)

    async def live(self, devices: Sequence[Device]) -> list[bool]:
        """Return for each device if it has a stream on any process; all False when Redis does not answer."""
        try:
            found = await self._bus.present([name(device) for name in (_key, _earlier_key) for device in devices])
        except DependencyDown:
            return [False] * len(devices)
        return [now or earlier for now, earlier in zip(found[: len(devices)], found[len(devices) :], strict=True)]


class PresenceKeeper:
    """Updates the marks of this process when a stream opens or closes, and refreshes them before they expire."""

    def __init__(
        self,
        presence: Presence,
        live_devices: Callable[[], Sequence[Device]],
        is_live: Callable[[Device], bool],
        clock: Clock,
    ) -> None:
        """`live_devices()` returns the devices that have a stream on this process now, `is_live` if one has."""
        self._presence = presence
        self._live_devices = live_devices
        self._is_live = is_live
        self._clock = clock
        self._changed: set[Device] = set()
        self._refreshing = False
        self._pending = asyncio.Event()

    def streams_changed(self, device: Device) -> None:
        """Update the mark of a device, whose stream opened or closed."""
        self._changed.add(device)
        self._pending.set()

    async def run_refresh(self) -> None:
        """Refresh every mark before it expires, for ever."""
        while True:
            await self._clock.sleep(_REFRESH_EVERY_S)
            self._refreshing = True
            self._pending.set()

    async def run(self) -> None:
        """Write changed marks, for ever. Those that Redis does not take are written with the next refresh."""
        while True:
            await self._pending.wait()
            self._pending.clear()
            changed, self._changed = self._changed, set()
            live = set(self._live_devices() if self._refreshing else filter(self._is_live, changed))
            self._refreshing = False
            try:
                await self._presence.mark(list(live))
                await self._presence.unmark(list(changed - live))
            except DependencyDown:
                continue


def _key(device: Device) -> str:
    return "streams:" + "\x1f".join(device)


def _earlier_key(device: Device) -> str:
    # Earlier versions mark devices under this key: their servers run beside this one during an update.
    return "live:" + "\x1f".join(device)
