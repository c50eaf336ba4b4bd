"""Lists the scopes that a device is behind in, and has each batch applied before its cursor moves."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from syncbeat.backoff import Backoff
from syncbeat.boottime_clock import SyncClock
from syncbeat.cursor_state import CursorState, PendingFetch, SyncBatch
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb

if TYPE_CHECKING:
    from syncbeat.client import SyncbeatClient

OnChanges = Callable[[SyncBatch], Awaitable[None]]
"""Applies a batch. When it raises, it is given the same batch again, later."""

_MAX_APPLY_DELAY_S = 60.0

_log = logging.getLogger("syncbeat.smart_sync")


@dataclass(frozen=True)
class SyncedDevice:
    """A device to keep in sync; `user_id` is for services. Without `streams` it only polls."""

    device_id: str
    user_id: str
    streams: bool


class ScopeFetcher:
    """Fetches one scope at a time."""

    def __init__(
        self,
        client: SyncbeatClient,
        device: SyncedDevice,
        state: CursorState,
        on_changes: OnChanges,
        clock: SyncClock,
    ) -> None:
        self._client = client
        self._device = device
        self._state = state
        self._on_changes = on_changes
        self._clock = clock

    async def fetch(self, fetch: PendingFetch) -> list[str]:
        """List a scope from its cursor to its end, and return the tokens of the pushes to acknowledge."""
        requests = fetch.requests
        known = self._state.cursors.get(fetch.scope)
        cursor = core_pb2.ScopeCursor(scope=fetch.scope) if fetch.drop or known is None else known
        more = True
        while more:
            page = await self._client.sync.ListChanges(
                pb.ListChangesRequest(
                    user_id=self._device.user_id,
                    device_id=self._device.device_id,
                    cursor=cursor,
                    page_size=self._client.rule.page_size,
                )
            )
            # A page that leads nowhere is the last: the same page would come for ever.
            more = page.more and page.next_cursor != cursor
            cursor = page.next_cursor
            batch = SyncBatch(fetch.scope, tuple(page.changes), cursor, drop=fetch.drop or page.reset)
            if batch.changes or batch.drop:
                await self.apply(batch)
            else:
                self._state.record_applied(batch)
            fetch.drop = False
        return self._state.complete(fetch, requests)

    async def apply(self, batch: SyncBatch) -> None:
        """Hand a batch over, again and again until it was applied; only then its cursor moves."""
        backoff = Backoff(_MAX_APPLY_DELAY_S)
        while True:
            try:
                await self._on_changes(batch)
            except Exception:  # noqa: BLE001  # whatever it is, the batch must not be lost
                delay_s = backoff.next_delay()
                _log.exception("a batch of %r was not applied; it is given again in %.1f s", batch.scope, delay_s)
                await self._clock.sleep(delay_s)
            else:
                break
        self._state.record_applied(batch)

    async def leave(self, scope: str) -> None:
        """Drop a scope that the user is no longer a member of."""
        _log.info("not a member of the scope %r any more", scope)
        await self.apply(SyncBatch(scope, (), None, drop=True))
