"""Reads of a firehose from a token on: page by page, and after a reset."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from syncbeat_server.sync.model import Activity, ChangesSent, Checkpoint, ResetAll
from syncbeat_server.sync.streams.firehose_stream import FirehoseRequest
from tests.support.build import APP, SyncFeature
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import wait_until
from tests.support.seed import rows_of
from tests.support.sync_streams import came, let_in, whole


async def pages_from(sync: SyncFeature, token: str) -> AsyncIterator[tuple[list[tuple[str, int]], str]]:
    """Between two checkpoints: the changes, and the token after them."""
    events = sync.firehose.watch(FirehoseRequest(APP, token, (), Activity(), 30.0, None, let_in))
    changes: list[tuple[str, int]] = []
    try:
        async with asyncio.timeout(60):
            async for event in events:
                if isinstance(event, ChangesSent):
                    changes += [(change.scope, change.sequence) for change in event.changes]
                elif isinstance(event, Checkpoint):
                    yield changes, event.token
                    changes = []
    finally:
        await events.aclose()


async def first_page(sync: SyncFeature, token: str) -> tuple[list[tuple[str, int]], str]:
    async for page in pages_from(sync, token):
        return page
    raise AssertionError("there is no page")


async def three_pages(sync: SyncFeature, token: str) -> AsyncIterator[tuple[list[tuple[str, int]], str]]:
    for _ in range(3):
        page = await first_page(sync, token)
        token = page[1]
        yield page


async def add_rows(urls: DatabaseUrls, many: int, keys: int = 5) -> None:
    """As if each of so many rows had been published, all in one transaction."""
    await run_sql(
        urls.admin_url,
        f"""INSERT INTO scopes (app_id, scope, head, created_at)
            SELECT 'default', 'bulk-' || lpad(n::text, 6, '0'), {keys}, syncbeat_now()
            FROM generate_series(1, {many // keys}) n""",
        f"""INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)
            SELECT 'default', 'bulk-' || lpad(n::text, 6, '0'), 'k' || k, '1', k, syncbeat_now()
            FROM generate_series(1, {many // keys}) n, generate_series(1, {keys}) k""",
    )


async def reset_by(sync: SyncFeature, token: str) -> Any:
    """The answer to a token that cannot be gone on from; after it the stream brings all there is, and goes on."""
    async with whole(sync, token) as reader:
        (reset,) = [event for event in reader.events if isinstance(event, ResetAll)]
        there = await rows_of(sync.database, "SELECT scope, sequence FROM changes ORDER BY scope, sequence")
        await came(reader, *there)
        await wait_until(lambda: isinstance(reader.events[-1], Checkpoint))
        seen = reader.token
        await sync.publish("after the reset", scope="news")
        await wait_until(lambda: [scope for scope, _ in reader.places()[len(there) :]] == ["news"])
        assert reader.count(ResetAll) == 1
    async with whole(sync, seen) as reader:
        await wait_until(lambda: [scope for scope, _ in reader.places()] == ["news"])
    return reset
