"""Ten million records that are too old are deleted faster than a busy service adds them, while workers claim."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.push.delivery.maintenance import old_rows
from syncbeat_server.push.model import Target
from syncbeat_server.push.store import queue
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.retention import Retention
from tests.support.build import APP
from tests.support.databases import DatabaseUrls
from tests.support.seed import accept, add_device, message

pytestmark = pytest.mark.prove

ROWS = int(os.environ.get("OLD_ROWS", "10800000"))
LEAST_PER_S = 3_000
USERS, CLAIMS_ALONE = 200, 60
PAUSE_S = 0.05
_CHUNK = 50_000


async def lines() -> AsyncIterator[bytes]:
    """The records in COPY's text format: 60 days old, a millisecond apart."""
    began = time.time() - 60 * 86_400
    for start in range(0, ROWS, _CHUNK):
        numbers = range(start, min(start + _CHUNK, ROWS))
        yield b"".join(
            b"default\tproof\tSendNotification\trequest-%d\t\\\\x%064x\t{}\t%s\n"
            % (number, number, time.strftime("%FT%TZ", time.gmtime(began + number / 1_000)).encode())
            for number in numbers
        )
        await asyncio.sleep(0)


async def plant(urls: DatabaseUrls) -> None:
    conn = await asyncpg.connect(urls.admin_url)
    try:
        await conn.copy_to_table(
            "request_records",
            source=lines(),
            columns=["app_id", "caller", "rpc", "request_id", "content_hash", "answer", "created_at"],
            timeout=1_800,
        )
        await conn.execute("ANALYZE request_records")
    finally:
        await conn.close()


async def claim_ms(database: Database) -> float:
    """Measure a claim of all that waits, in ms, and give it back."""
    lease = str(uuid.uuid4())
    began = time.perf_counter()
    async with database.transaction() as conn:
        found = await queue.claim(conn, lease, 30.0, {APP: USERS})
        claimed = await queue.read_claimed(conn, lease, found.keys)
    took = (time.perf_counter() - began) * 1_000
    assert len(claimed) == USERS
    async with database.connection() as conn:
        await queue.release(conn, [lease])
    return took


@pytest.mark.timeout(7_200)
async def test_retention_of_ten_million_rows_keeps_up_while_workers_claim(
    database: Database, database_urls: DatabaseUrls, record: Callable[[str, dict[str, object]], None]
) -> None:
    for number in range(USERS):
        await add_device(database, f"user-{number}")
    await accept(database, message(*(Target(user_id=f"user-{number}") for number in range(USERS)), ttl_s=86_400.0))
    await plant(database_urls)
    clock = SystemClock()
    alone = [await claim_ms(database) for _ in range(CLAIMS_ALONE)]
    sweeping = asyncio.create_task(Retention(database, old_rows(30.0), clock).sweep())
    began, beside = clock.monotonic(), list[float]()
    while not sweeping.done():
        beside.append(await claim_ms(database))
        await asyncio.wait([sweeping], timeout=PAUSE_S)
    took_s = clock.monotonic() - began
    gone = (await sweeping)["request_records"]
    figures: dict[str, object] = {
        "rows": gone,
        "rows_per_s": round(gone / took_s),
        "seconds": round(took_s),
        "claims_beside": len(beside),
        "claim_ms_alone": round(statistics.median(alone), 1),
        "claim_ms_beside": round(statistics.median(beside), 1),
        "claim_ms_beside_p99": round(statistics.quantiles(beside, n=100)[98], 1),
    }
    assert gone == ROWS, figures
    assert gone / took_s > LEAST_PER_S, figures
    record("retention", figures)
