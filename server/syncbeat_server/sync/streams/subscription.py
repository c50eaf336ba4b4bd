"""Holds the wake-up state of one open stream."""

from __future__ import annotations

import asyncio

from syncbeat_server.sync.model import DeviceKey


class Subscription:
    """Marks the scopes of one open stream that have news, without a queue behind the marks.

    A stream of all scopes (`all_scopes`) is only woken. `members_changed`, `reread_all` and `recheck_caller` ask the
    stream to read its memberships, all scopes that it has sent, or its caller's access again.
    """

    __slots__ = (
        "_waiter",
        "all_scopes",
        "device",
        "dirty",
        "members_changed",
        "recheck_caller",
        "reread_all",
        "scopes",
        "woken",
    )

    def __init__(self, device: DeviceKey, *, all_scopes: bool) -> None:
        self.device = device
        self.all_scopes = all_scopes
        self.scopes: set[str] = set()
        self.dirty: set[str] = set()
        self.members_changed = False
        self.reread_all = False
        self.recheck_caller = False
        self.woken = False
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self, seconds: float) -> None:
        """Return when the stream is woken, or after `seconds`."""
        if self.woken or seconds <= 0:
            self.woken = False
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self._release)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None
            self.woken = False

    def wake(self) -> None:
        """Make `wait` return, now or at its next call."""
        self.woken = True
        self._release()

    def take_dirty(self) -> set[str]:
        """Return the scopes with news, and clear their marks."""
        dirty, self.dirty = self.dirty, set()
        return dirty

    def _release(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
