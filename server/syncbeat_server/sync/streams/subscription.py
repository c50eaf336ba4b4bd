"""Holds the wake-up state of one open stream."""

from __future__ import annotations

import asyncio

from syncbeat_server.sync.model import Cursor, DeviceKey, FeedPage


class Subscription:
    """Marks the scopes of one open stream that have news, without a queue behind the marks.

    A stream of all scopes (`all_scopes`) is only woken. `members_changed`, `reread_all` and `recheck_caller` ask the
    stream to read its memberships, all scopes that it has sent, or its caller's access again. `cursors` are the
    stream's own, by scope; `page` is a page that was read ahead for it, with the cursor that it follows.
    """

    __slots__ = (
        "_waiter",
        "all_scopes",
        "cursors",
        "device",
        "dirty",
        "members_changed",
        "page",
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
        self.cursors: dict[str, Cursor] = {}
        self.page: tuple[Cursor, FeedPage] | None = None
        self.members_changed = False
        self.reread_all = False
        self.recheck_caller = False
        self.woken = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Return True if the stream waits for news, with nothing else to do once it is woken."""
        if self._waiter is None or self.page is not None:
            return False
        return not (self.members_changed or self.reread_all or self.recheck_caller)

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

    def take_page(self) -> tuple[Cursor, FeedPage] | None:
        """Return the page that was read ahead, and forget it."""
        page, self.page = self.page, None
        return page

    def take_dirty(self) -> set[str]:
        """Return the scopes with news, and clear their marks."""
        dirty, self.dirty = self.dirty, set()
        return dirty

    def _release(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
