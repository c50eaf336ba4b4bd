"""Tests the bounds of reads in octets: pages, the rounds of streams, batches of many readers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.fair_sharing import PAGE_OCTETS
from syncbeat_server.sync.feed.reader import ReadLimits
from syncbeat_server.sync.feed.tombstone_pruning import TombstonePruner
from syncbeat_server.sync.model import Change, Cursor, FeedPage
from syncbeat_server.sync.store import changes as changes_store
from tests.support.build import APP, SyncFeature
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import add_members, couple, rows_of, until
from tests.support.sync_streams import keys, stream

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

KIB = 1 << 10
LARGEST = PAGE_OCTETS - 64  # of a string: jsonb keeps some octets of its own beside it


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    return SyncFeature(database, clock)


async def fill(sync: SyncFeature, count: int, octets: int, scope: str = "couple") -> None:
    """Publish keys with values of a size each; they are written as they are stored."""
    await sync.publish("first", scope=scope)
    async with sync.database.transaction() as conn:
        await conn.execute(
            """INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)
               SELECT $1, $2, 'k' || n, to_jsonb(repeat('x', $4 - 2)), n + 1, syncbeat_now()
               FROM generate_series(1, $3) n""",
            APP,
            scope,
            count,
            octets,
        )
        await conn.execute("UPDATE scopes SET head = $1 WHERE scope = $2", count + 1, scope)


def octets_of(changes: tuple[Change, ...]) -> int:
    return sum(len(change.value_json.encode()) for change in changes)


async def all_pages(sync: SyncFeature, limit: int = 1_000, scope: str = "couple") -> list[FeedPage]:
    pages = [await sync.page(Cursor(scope), limit)]
    while pages[-1].more:
        pages.append(await sync.page(pages[-1].next, limit))
    return pages


@pytest.mark.parametrize(
    ("count", "octets"),
    [(60, 100 * KIB), (600, 60 * KIB), (3, LARGEST), (1_500, 8), (40, 300 * KIB), (12, PAGE_OCTETS // 2)],
)
async def test_page_size_ends_at_a_mebibyte_and_misses_nothing(sync: SyncFeature, count: int, octets: int) -> None:
    await fill(sync, count, octets)
    pages = await all_pages(sync)
    assert [key for page in pages for key in keys(page)] == ["first", *(f"k{n}" for n in range(1, count + 1))]
    assert all(octets_of(page.changes) <= PAGE_OCTETS or len(page.changes) == 1 for page in pages)
    assert all(page.changes for page in pages)
    assert [page.more for page in pages] == [True] * (len(pages) - 1) + [False]
    for page in pages[:-1]:  # as large as it may be
        size = octets_of(page.changes) + changes_store.ROW_OCTETS * len(page.changes)
        assert len(page.changes) == 1_000 or size + octets + changes_store.ROW_OCTETS > PAGE_OCTETS


async def test_page_of_exactly_the_limit_is_the_last(sync: SyncFeature) -> None:
    await sync.publish("a", "b", "c")
    page = await sync.page(Cursor("couple"), limit=3)
    assert (keys(page), page.more) == (["a", "b", "c"], False)


async def test_page_size_counts_value_octets(sync: SyncFeature) -> None:
    text = json.dumps({"ä": "€" * 100, "n": 1}, ensure_ascii=False)
    async with sync.database.connection() as conn:
        await sync.publish("a", "gone")
        await sync.publish("gone", deleted=True)
        await conn.execute("UPDATE changes SET value = $1::jsonb WHERE key = 'a'", text)
    kept = await rows_of(sync.database, "SELECT key, octets, octet_length(value::text) FROM changes ORDER BY key")
    assert kept == [("a", len(text.encode()), len(text.encode())), ("gone", 0, None)]


async def test_page_cut_short_keeps_the_mark_of_a_full_list(sync: SyncFeature) -> None:
    await fill(sync, 30, 100 * KIB)
    await sync.publish("first", deleted=True)
    await sync.publish("k30", deleted=True)
    await sync.clock.advance(31 * 86_400.0)
    await TombstonePruner(sync.database, 30.0, sync.clock).prune()
    pages = await all_pages(sync)
    assert len(pages) == 3
    assert [page.next.epoch for page in pages[:-1]] == [f"{pages[-1].next.epoch}~33"] * 2
    assert [key for page in pages for key in keys(page)] == [f"k{n}" for n in range(1, 30)]
    assert not any(page.reset for page in pages)
    again = await sync.page(Cursor("couple", pages[-1].next.epoch, 5), 1_000)
    assert (again.reset, again.more, len(again.changes)) == (True, True, 10)


async def test_page_size_budget_is_shared_by_concurrent_readers(
    sync: SyncFeature, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = changes_store.changes_between

    async def watched(
        conn: object, reads: list[changes_store.FeedRead], octets: int
    ) -> list[changes_store.FeedPart | None]:
        parts = await read(conn, reads, octets)  # type: ignore[arg-type]  # a connection, as it came
        asked.append(sum(octets_of(part.changes) for part in parts if part is not None))
        return parts

    monkeypatch.setattr(changes_store, "changes_between", watched)
    scopes = [f"big-{n}" for n in range(6)]
    for scope in scopes:
        await fill(sync, 60, 100 * KIB, scope)
    await sync.publish("a", scope="small")
    asked.clear()
    pages = await asyncio.gather(*(all_pages(sync, scope=scope) for scope in (*scopes, "small")))
    assert [len(of_one) for of_one in pages[-1:]] == [1]
    for of_one in pages[:-1]:
        assert [key for page in of_one for key in keys(page)] == ["first", *(f"k{n}" for n in range(1, 61))]
        assert all(page.changes for page in of_one)
    assert max(asked) <= PAGE_OCTETS


async def test_page_size_budget_of_many_reads_of_one_caller(sync: SyncFeature) -> None:
    scopes = [f"big-{n}" for n in range(8)]
    for scope in scopes:
        await fill(sync, 3, 300 * KIB, scope)
    cursors = {scope: Cursor(scope) for scope in scopes}
    seen: dict[str, list[str]] = {scope: [] for scope in scopes}
    rounds = 0
    while cursors:
        rounds += 1
        pages = await sync.reader.pages(APP, None, list(cursors.values()), 200)
        found = [page for page in pages if page is not None]
        assert 0 < sum(octets_of(page.changes) for page in found) <= PAGE_OCTETS
        for page in found:
            seen[page.state.scope] += keys(page)
            cursors[page.state.scope] = page.next
            if not page.more:
                del cursors[page.state.scope]
    assert set(map(tuple, seen.values())) == {("first", "k1", "k2", "k3")}
    assert rounds <= 9


async def test_page_size_of_a_stream_round_is_a_mebibyte(sync: SyncFeature, monkeypatch: pytest.MonkeyPatch) -> None:
    scopes = [f"big-{n}" for n in range(36)]
    for scope in scopes:
        await fill(sync, 4, 256 * KIB, scope)
        await add_members(sync.database, scope, "ann")
    rounds: list[list[FeedPage]] = []
    read = sync.reader.pages

    async def noted(*ask: Any) -> list[FeedPage | None]:
        pages = await read(*ask)
        rounds.append([page for page in pages if page is not None])
        return pages

    monkeypatch.setattr(sync.reader, "pages", noted)
    async with stream(sync, *(Cursor(scope, "", 0) for scope in scopes)) as reader:
        await wait_until(lambda: len(reader.changes()) >= 5 * len(scopes))
        sent = {scope: [at for name, at in reader.places() if name == scope] for scope in scopes}
    assert max(sum(octets_of(page.changes) for page in pages) for pages in rounds) <= PAGE_OCTETS
    assert set(map(tuple, sent.values())) == {(1, 2, 3, 4, 5)}


async def test_stream_with_more_scopes_than_a_round_tells_all(sync: SyncFeature) -> None:
    scopes = [f"scope-{n:03}" for n in range(450)]
    async with sync.database.transaction() as conn:
        await conn.execute(
            """WITH made AS (INSERT INTO scopes (app_id, scope, head, created_at)
                             SELECT $1, s, 1, syncbeat_now() FROM unnest($2::text[]) s RETURNING scope),
                    joined AS (INSERT INTO scope_members (app_id, user_id, scope, role, added_at)
                               SELECT $1, 'ann', s, 'READER', syncbeat_now() FROM unnest($2::text[]) s)
               SELECT count(*) FROM made""",
            APP,
            scopes,
        )
        await conn.execute(
            """INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)
               SELECT $1, s, s, '1', 1, syncbeat_now() FROM unnest($2::text[]) s""",
            APP,
            scopes,
        )
    async with stream(sync, *(Cursor(scope, "", 0) for scope in scopes)) as reader:
        await wait_until(lambda: len(reader.changes()) >= 450)
        assert sorted(key for key, _ in reader.changes()) == scopes


async def test_reads_of_many_scopes_are_split_into_statements(sync: SyncFeature) -> None:
    sync = sync.under(reads=ReadLimits(pages_per_statement=4))
    for n in range(6):
        await sync.publish("a", scope=f"s{n}")
    wanted = [[Cursor(f"s{n}") for n in range(count)] for count in (3, 2, 6, 1)]
    found = await asyncio.gather(*(sync.reader.pages(APP, None, cursors, 9) for cursors in wanted))
    assert [[keys(page) for page in pages if page] for pages in found] == [[["a"]] * n for n in (3, 2, 6, 1)]


async def test_streams_of_many_scopes_opening_at_once_bound_reads(sync: SyncFeature) -> None:
    sync = sync.under(reads=ReadLimits(heads_per_statement=500))
    await sync.publish("a", scope="s7")
    names = [f"s{n}" for n in range(2_000)]
    found = await asyncio.gather(*(sync.reader.heads(APP, None, names) for _ in range(20)))
    assert [[state.scope for state in states if state] for states in found] == [["s7"]] * 20
    assert {len(states) for states in found} == {2_000}


async def test_page_of_one_oversized_value(sync: SyncFeature, database_urls: DatabaseUrls) -> None:
    await fill(sync, 2, LARGEST)
    # As one that was written before values were bounded by what readers get.
    await run_sql(database_urls.owner_url, "ALTER TABLE changes DROP CONSTRAINT changes_value_octets")
    async with sync.database.transaction() as conn:
        await conn.execute("UPDATE changes SET value = to_jsonb(repeat(E'\\n', 600000)) WHERE key = 'k1'")
    pages = await all_pages(sync)
    assert [keys(page) for page in pages] == [["first"], ["k1"], ["k2"]]
    async with stream(sync, Cursor("couple", "", 0)) as reader:
        await until(lambda: said(reader.changes()))
        assert [key for key, _ in reader.changes()] == ["first", "k1", "k2"]


async def said(changes: list[tuple[str, int]]) -> bool:
    return len(changes) == 3
