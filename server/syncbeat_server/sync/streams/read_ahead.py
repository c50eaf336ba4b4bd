"""Reads the news of many idle streams at once, so that thousands on one scope cost one read of it for each chunk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from syncbeat_server.errors import SyncbeatError
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.model import Cursor
from syncbeat_server.sync.streams.subscription import Subscription

_PATIENCE_S = 4.0  # then streams read by themselves; a busy event loop alone takes a second


class PageReadAhead:
    """Gives each stream the page after its cursor in one scope that has news.

    Streams at the same cursor share a page. Those that get none, because they are no members, or there was no room, or
    they are busy by then, have their mark again and read by themselves. A stream holds one such page at most.
    """

    def __init__(self, reader: FeedReader, page_size: int) -> None:
        """`page_size`: the changes of a page, as many as streams read of one scope at once."""
        self._reader = reader
        self._page_size = page_size

    async def read(self, subscriptions: Sequence[Subscription]) -> bool:
        """Read a page for each stream and set it; return False if the database does not answer well now."""
        waiting: dict[Subscription, tuple[str, Cursor]] = {}
        for subscription in subscriptions:
            cursor = _next_cursor(subscription)
            if cursor is not None:
                # Before the read: what is marked from here on may not be in the page.
                subscription.dirty.discard(cursor.scope)
                waiting[subscription] = subscription.device.app_id, cursor
        try:
            return await self._set_pages(waiting)
        finally:
            for subscription, (_, cursor) in waiting.items():
                subscription.dirty.add(cursor.scope)

    async def _set_pages(self, waiting: dict[Subscription, tuple[str, Cursor]]) -> bool:
        """Set the pages, and remove the streams that got one."""
        readers = [(app_id, one.device.user_id, cursor.scope) for one, (app_id, cursor) in waiting.items()]
        cursors = list(dict.fromkeys(waiting.values()))
        try:
            async with asyncio.timeout(_PATIENCE_S):
                pages, may_read = await self._reader.shared_pages(cursors, readers, self._page_size)
        except (SyncbeatError, TimeoutError):
            return False
        page_at = dict(zip(cursors, pages, strict=True))
        for subscription, is_member in zip(list(waiting), may_read, strict=True):
            page = page_at[waiting[subscription]]
            if page is not None and not page.is_deferred and is_member and subscription.is_idle:
                subscription.page = waiting.pop(subscription)[1], page
        return True


def _next_cursor(subscription: Subscription) -> Cursor | None:
    """Return the stream's cursor in a scope with news; None if it is to read by itself."""
    if not subscription.is_idle:
        return None
    for scope in subscription.dirty:
        return subscription.cursors.get(scope)
    return None
