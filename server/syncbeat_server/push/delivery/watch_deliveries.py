"""Streams the changes of a notification's or a user's deliveries, for WatchDeliveries.

The database is polled twice a second while somebody watches. Transactions do not commit in the order of their times, so
each poll begins some seconds before the end of the last one, and skips what it has reported already.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from syncbeat_server.clock import Clock
from syncbeat_server.errors import NotFound, Overloaded
from syncbeat_server.push.model import Delivery, DeliveryFilter
from syncbeat_server.push.store import notifications
from syncbeat_server.storage.postgres.database import Database

_POLL_S = 0.5
_OVERLAP_S = 5.0
_LONG_OVERLAP_S = 60.0
_LONG_EVERY = 20  # polls
_PAGE = 1_000
_MAX_WATCHES = 200

_LEAST_ID = "00000000-0000-0000-0000-000000000000"
_Version = tuple[datetime, str, str, int]


@dataclass(slots=True)
class _Progress:
    """Time of the newest change that a watch has reported, and the reported version of each delivery."""

    newest: datetime | None = None
    reported: dict[str, _Version] = field(default_factory=dict)
    polls: int = 0


class DeliveryWatches:
    """Opens streams of deliveries, of which there are at most 200 in a process."""

    def __init__(self, database: Database, clock: Clock, age_s: float) -> None:
        """`age_s`: seconds after which a stream ends at the latest."""
        self._age_s = age_s
        self._database = database
        self._clock = clock
        self._open = 0
        self._draining = False

    def drain(self) -> None:
        """End every stream with its next poll."""
        self._draining = True

    async def watch(self, app_id: str, wanted: DeliveryFilter) -> AsyncGenerator[list[Delivery]]:
        """Yield each delivery as it is, then each that changed, until the process drains or the stream is too old.

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
            progress = _Progress()
            ends_at = self._clock.monotonic() + self._age_s
            while not self._draining and self._clock.monotonic() < ends_at:
                async for page in _poll(self._database, app_id, wanted, progress):
                    yield page
                await self._clock.sleep(_POLL_S)
        finally:
            self._open -= 1


async def _poll(
    database: Database, app_id: str, wanted: DeliveryFilter, progress: _Progress
) -> AsyncIterator[list[Delivery]]:
    """Yield the deliveries that changed since the last poll, page by page."""
    overlap_s = _LONG_OVERLAP_S if progress.polls % _LONG_EVERY == 0 else _OVERLAP_S
    progress.polls += 1
    after = None if progress.newest is None else (progress.newest - timedelta(seconds=overlap_s), _LEAST_ID)
    while True:
        async with database.connection() as conn:
            page = await notifications.list_changed(conn, app_id, wanted, after, _PAGE)
        fresh = [delivery for delivery in page if progress.reported.get(delivery.delivery_id) != _version(delivery)]
        progress.reported.update((delivery.delivery_id, _version(delivery)) for delivery in fresh)
        if fresh:
            yield fresh
        if page:
            after = (page[-1].updated_at, page[-1].delivery_id)
            progress.newest = max(page[-1].updated_at, progress.newest or page[-1].updated_at)
        if len(page) < _PAGE:
            break
    _drop_old_versions(progress)


def _drop_old_versions(progress: _Progress) -> None:
    if progress.newest is not None:
        floor = progress.newest - timedelta(seconds=2 * _LONG_OVERLAP_S)
        progress.reported = {name: version for name, version in progress.reported.items() if version[0] >= floor}


def _version(delivery: Delivery) -> _Version:
    return (delivery.updated_at, delivery.state, delivery.reason, delivery.attempts)
