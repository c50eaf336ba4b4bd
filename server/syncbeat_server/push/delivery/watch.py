"""Follows the deliveries of a notification or a user, for WatchDeliveries.

It looks into the database twice a second while somebody watches. Transactions do not commit in the order of their
times, so each look begins some seconds before the last one ended; what was told already is not told again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime, timedelta

from syncbeat_server.clock import Clock
from syncbeat_server.errors import NotFound, Overloaded
from syncbeat_server.push.model import Delivery, DeliveryFilter
from syncbeat_server.push.store import notifications
from syncbeat_server.storage.postgres.database import Database

_LOOK_S = 0.5
_OVERLAP_S = 5.0
_LONG_OVERLAP_S = 60.0
_LONG_EVERY = 20
_PAGE = 1_000
_MAX_WATCHES = 200

_LEAST = "00000000-0000-0000-0000-000000000000"
_Told = tuple[datetime, str, str, int]


class DeliveryWatches:
    """Streams of deliveries, bounded in number."""

    def __init__(self, database: Database, clock: Clock, age_s: float) -> None:
        """`age_s`: after which time a stream ends at the latest."""
        self._age_s = age_s
        self._database = database
        self._clock = clock
        self._open = 0
        self._draining = False

    def drain(self) -> None:
        """Let every stream end with its next look."""
        self._draining = True

    async def watch(self, app_id: str, wanted: DeliveryFilter) -> AsyncGenerator[list[Delivery]]:
        """First each delivery as it is, then each that changed, until the process drains or it is old.

        Raises:
            NotFound: there is no such notification.
            Overloaded: too many watch already.
            DependencyDown: the database does not answer.
        """
        if self._open >= _MAX_WATCHES:
            raise Overloaded("too many watch deliveries")
        self._open += 1
        try:
            if wanted.notification_id:
                async with self._database.connection() as conn:
                    if await notifications.find_notification(conn, app_id, wanted.notification_id) is None:
                        raise NotFound("there is no such notification")
            follower = _Follower(self._database, app_id, wanted)
            ends_at = self._clock.monotonic() + self._age_s
            while not self._draining and self._clock.monotonic() < ends_at:
                async for page in follower.look():
                    yield page
                await self._clock.sleep(_LOOK_S)
        finally:
            self._open -= 1


class _Follower:
    def __init__(self, database: Database, app_id: str, wanted: DeliveryFilter) -> None:
        self._database = database
        self._app_id = app_id
        self._wanted = wanted
        self._newest: datetime | None = None
        self._told: dict[str, _Told] = {}
        self._looks = 0

    async def look(self) -> AsyncIterator[list[Delivery]]:
        """What is new since the last look, by pages."""
        overlap_s = _LONG_OVERLAP_S if self._looks % _LONG_EVERY == 0 else _OVERLAP_S
        self._looks += 1
        after = None if self._newest is None else (self._newest - timedelta(seconds=overlap_s), _LEAST)
        while True:
            async with self._database.connection() as conn:
                page = await notifications.list_changed(conn, self._app_id, self._wanted, after, _PAGE)
            fresh = [delivery for delivery in page if self._told.get(delivery.delivery_id) != _seen(delivery)]
            self._told.update((delivery.delivery_id, _seen(delivery)) for delivery in fresh)
            if fresh:
                yield fresh
            if page:
                after = (page[-1].updated_at, page[-1].delivery_id)
                self._newest = max(page[-1].updated_at, self._newest or page[-1].updated_at)
            if len(page) < _PAGE:
                break
        self._forget()

    def _forget(self) -> None:
        if self._newest is not None:
            floor = self._newest - timedelta(seconds=2 * _LONG_OVERLAP_S)
            self._told = {name: told for name, told in self._told.items() if told[0] >= floor}


def _seen(delivery: Delivery) -> _Told:
    return (delivery.updated_at, delivery.state, delivery.reason, delivery.attempts)
