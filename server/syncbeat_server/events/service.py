"""Serves callers: reads, lists and retries recorded events."""

from __future__ import annotations

from syncbeat_server.errors import NotFound
from syncbeat_server.events.ingest import EventIngest
from syncbeat_server.events.model import EventFilter, EventKey, IncomingEvent, IngestResult, ListPlace, StoredEvent
from syncbeat_server.events.store import event_rows
from syncbeat_server.storage.postgres.database import Database


class EventService:
    """Ingests, retries, reads and lists the events of apps."""

    def __init__(self, database: Database, ingest: EventIngest) -> None:
        self._database = database
        self._ingest = ingest

    async def ingest(self, event: IncomingEvent) -> IngestResult:
        """Record an event and carry out its effects; see `EventIngest.ingest`."""
        return await self._ingest.ingest(event)

    async def retry(self, key: EventKey, caller: str, methods: frozenset[str] | None) -> IngestResult:
        """Carry out the effects of a FAILED event again; see `EventIngest.retry`."""
        return await self._ingest.retry(key, caller, methods, audited=True)

    async def event(self, key: EventKey) -> StoredEvent:
        """Return a recorded event. Raises NotFound."""
        async with self._database.connection() as conn:
            found = await event_rows.find_event(conn, key)
        if found is None:
            raise NotFound("there is no such event")
        return found

    async def events(
        self, app_id: str, wanted: EventFilter, after: ListPlace, limit: int
    ) -> tuple[list[StoredEvent], bool]:
        """Return up to `limit` events after a place, newest first, and True if there are more."""
        async with self._database.connection() as conn:
            return await event_rows.list_events(conn, app_id, wanted, after, limit)
