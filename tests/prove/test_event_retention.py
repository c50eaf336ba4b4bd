"""A million events that are too old are deleted faster than a busy deployment adds them, while events come in."""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
from collections.abc import Callable

import asyncpg
import pytest

from syncbeat import SyncbeatClient
from syncbeat.v1 import event_service_pb2 as pb
from syncbeat_devtools.demo.stage import Stage
from syncbeat_server.clock import SystemClock
from syncbeat_server.events.retention import old_rows
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.retention import Retention
from tests.support.databases import DatabaseUrls
from tests.support.event_requests import change, event

pytestmark = pytest.mark.prove

ROWS = int(os.environ.get("OLD_EVENTS", "1000000"))
LEAST_PER_S, KEEP_DAYS = 1_000, 30
CALLERS, CALLS_ALONE = 8, 800
LONGEST_LOCK_S = 1.0
_CHUNK = 100_000
# As the service wrote them, but for their names and times: 60 days old, a tenth of a second apart.
_PLANT = """
INSERT INTO {table} SELECT (jsonb_populate_record(t, jsonb_build_object(
    '{key}', 'old-' || n, '{at}', syncbeat_now() - interval '60 days' + n * interval '0.1 s'))).*
FROM {table} t, generate_series({first}, {last}) n WHERE t.{key} = '{model}'
"""
_TABLES = {
    "events": {"key": "event_id", "at": "first_seen_at", "model": "new-0"},
    "event_order_heads": {"key": "ordering_key", "at": "moved_at", "model": "s0"},
}
_BLOCKED = """
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - query_start)), 0)::float8 FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%IngestEvent%'
"""


async def plant(conn: asyncpg.Connection) -> None:
    for first in range(1, ROWS + 1, _CHUNK):
        for table, names in _TABLES.items():
            last = min(first + _CHUNK - 1, ROWS)
            await conn.execute(_PLANT.format(table=table, first=first, last=last, **names), timeout=600)
    await conn.execute("ANALYZE events, event_order_heads")


class Senders:
    """Callers that bring one event after the other, and how long each took."""

    def __init__(self, client: SyncbeatClient) -> None:
        self._client = client
        self._numbers = itertools.count()

    async def send(self, stop: Callable[[], bool]) -> list[float]:
        """Bring events until told to stop; the milliseconds of each."""
        took: list[float] = []
        loop = asyncio.get_running_loop()

        async def one_caller() -> None:
            while not stop():
                number = next(self._numbers)
                effects = pb.EventEffects(changes=[change(f"room-{number % 100}", number)])
                began = loop.time()
                await self._client.events.IngestEvent(event(f"new-{number}", effects, subject=f"s{number % 1000}"))
                took.append((loop.time() - began) * 1_000)

        await asyncio.gather(*(one_caller() for _ in range(CALLERS)))
        return took


async def longest_wait_s(conn: asyncpg.Connection, stop: Callable[[], bool]) -> float:
    """Look again and again how long an ingest waits for a lock; the longest that was seen."""
    longest = 0.0
    while not stop():
        longest = max(longest, await conn.fetchval(_BLOCKED))
    return longest


def summary(took: list[float]) -> tuple[float, float]:
    return round(statistics.median(took), 1), round(statistics.quantiles(took, n=100)[98], 1)


@pytest.mark.timeout(3_000)
async def test_event_retention_keeps_up_while_events_come_in(
    stage: Stage, database: Database, database_urls: DatabaseUrls, record: Callable[[str, dict[str, object]], None]
) -> None:
    server = await stage.start_server()
    clock = SystemClock()
    admin = await asyncpg.connect(database_urls.admin_url)
    async with stage.client(stage.identity.service_token, server) as client:
        senders = Senders(client)
        counted = itertools.count()
        alone = await senders.send(lambda: next(counted) >= CALLS_ALONE)
        await plant(admin)
        sweeping = asyncio.create_task(Retention(database, old_rows(KEEP_DAYS), clock).sweep())
        began = clock.monotonic()
        beside, longest_s = await asyncio.gather(senders.send(sweeping.done), longest_wait_s(admin, sweeping.done))
        took_s = clock.monotonic() - began
        gone = await sweeping
    left = await admin.fetchval("SELECT count(*) FROM events WHERE event_id LIKE 'old-%'")
    await admin.close()
    figures: dict[str, object] = {
        "command": "make prove ARGS='-k event_retention'",
        "rows": gone,
        "events_per_s": round(gone["events"] / took_s),
        "seconds": round(took_s),
        "ingests_beside_per_s": round(len(beside) / took_s),
        "ingest_ms_alone": dict(zip(("p50", "p99"), summary(alone), strict=True)),
        "ingest_ms_beside": dict(zip(("p50", "p99"), summary(beside), strict=True)),
        "longest_lock_wait_ms": round(longest_s * 1_000, 1),
    }
    assert left == 0, figures
    assert gone["events"] == ROWS, figures
    assert gone["events"] / took_s > LEAST_PER_S, figures
    assert longest_s < LONGEST_LOCK_S, figures
    record("event_retention", figures)
