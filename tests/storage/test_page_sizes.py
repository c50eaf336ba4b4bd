"""What is read of feeds at once is bounded in octets: pages, the rounds of streams, batches of many readers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed import fair_reads, reader
from syncbeat_server.sync.feed.fair_reads import PAGE_OCTETS
from syncbeat_server.sync.feed.prune import TombstonePruner
from syncbeat_server.sync.model import Change, Cursor, FeedPage
from syncbeat_server.sync.store import changes as changes_store
from tests.conftest import DatabaseUrls, run_sql
from tests.fakes import FakeClock, wait_until
from tests.storage.house import House, keys, stream
from tests.storage.stage import APP, add_members, couple, rows_of, until

pytestmark = pytest.mark.usefixtures("database", "clock")

KIB = 1 << 10
LARGEST = PAGE_OCTETS - 64  # of a string: jsonb keeps some octets of its own beside it


@pytest.fixture
async def house(database: Database, clock: FakeClock) -> House:
    await couple(database)
    return House(database, clock)


async def fill(house: House, count: int, octets: int, scope: str = "couple") -> None:
    """Publish keys with values of a size each; they are written as they are stored."""
    await house.publish("first", scope=scope)
    async with house.database.transaction() as conn:
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


async def all_pages(house: House, limit: int = 1_000, scope: str = "couple") -> list[FeedPage]:
    pages = [await house.page(Cursor(scope), limit)]
    while pages[-1].more:
        pages.append(await house.page(pages[-1].next, limit))
    return pages


@pytest.mark.parametrize(
    ("count", "octets"),
    [(60, 100 * KIB), (600, 60 * KIB), (3, LARGEST), (1_500, 8), (40, 300 * KIB), (12, PAGE_OCTETS // 2)],
)
async def test_a_page_ends_at_a_mebibyte_and_no_change_is_missed(house: House, count: int, octets: int) -> None:
    await fill(house, count, octets)
    pages = await all_pages(house)
    assert [key for page in pages for key in keys(page)] == ["first", *(f"k{n}" for n in range(1, count + 1))]
    assert all(octets_of(page.changes) <= PAGE_OCTETS or len(page.changes) == 1 for page in pages)
    assert all(page.changes for page in pages)
    assert [page.more for page in pages] == [True] * (len(pages) - 1) + [False]
    for page in pages[:-1]:  # as large as it may be
        size = octets_of(page.changes) + changes_store.ROW_OCTETS * len(page.changes)
        assert len(page.changes) == 1_000 or size + octets + changes_store.ROW_OCTETS > PAGE_OCTETS


async def test_a_page_of_just_as_many_changes_as_were_asked_for_is_the_last(house: House) -> None:
    await house.publish("a", "b", "c")
    page = await house.page(Cursor("couple"), limit=3)
    assert (keys(page), page.more) == (["a", "b", "c"], False)


async def test_the_size_of_a_value_is_that_of_its_text_in_octets(house: House) -> None:
    text = json.dumps({"ä": "€" * 100, "n": 1}, ensure_ascii=False)
    async with house.database.connection() as conn:
        await house.publish("a", "gone")
        await house.publish("gone", deleted=True)
        await conn.execute("UPDATE changes SET value = $1::jsonb WHERE key = 'a'", text)
    kept = await rows_of(house.database, "SELECT key, octets, octet_length(value::text) FROM changes ORDER BY key")
    assert kept == [("a", len(text.encode()), len(text.encode())), ("gone", 0, None)]


async def test_a_page_that_ends_early_keeps_the_mark_of_a_list_that_began_at_the_start(house: House) -> None:
    await fill(house, 30, 100 * KIB)
    await house.publish("first", deleted=True)
    await house.publish("k30", deleted=True)
    await house.clock.advance(31 * 86_400.0)
    await TombstonePruner(house.database, 30.0, house.clock).prune()
    pages = await all_pages(house)
    assert len(pages) == 3
    assert [page.next.epoch for page in pages[:-1]] == [f"{pages[-1].next.epoch}~33"] * 2
    assert [key for page in pages for key in keys(page)] == [f"k{n}" for n in range(1, 30)]
    assert not any(page.reset for page in pages)
    again = await house.page(Cursor("couple", pages[-1].next.epoch, 5), 1_000)
    assert (again.reset, again.more, len(again.changes)) == (True, True, 10)


async def test_readers_at_once_share_a_mebibyte_and_none_is_passed_over_for_ever(
    house: House, monkeypatch: pytest.MonkeyPatch
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
        await fill(house, 60, 100 * KIB, scope)
    await house.publish("a", scope="small")
    asked.clear()
    pages = await asyncio.gather(*(all_pages(house, scope=scope) for scope in (*scopes, "small")))
    assert [len(of_one) for of_one in pages[-1:]] == [1]
    for of_one in pages[:-1]:
        assert [key for page in of_one for key in keys(page)] == ["first", *(f"k{n}" for n in range(1, 61))]
        assert all(page.changes for page in of_one)
    assert max(asked) <= PAGE_OCTETS


async def test_many_reads_of_one_caller_are_answered_as_far_as_there_is_room(house: House) -> None:
    scopes = [f"big-{n}" for n in range(8)]
    for scope in scopes:
        await fill(house, 3, 300 * KIB, scope)
    cursors = {scope: Cursor(scope) for scope in scopes}
    seen: dict[str, list[str]] = {scope: [] for scope in scopes}
    rounds = 0
    while cursors:
        rounds += 1
        pages = await house.reader.pages(APP, None, list(cursors.values()), 200)
        found = [page for page in pages if page is not None]
        assert 0 < sum(octets_of(page.changes) for page in found) <= PAGE_OCTETS
        for page in found:
            seen[page.state.scope] += keys(page)
            cursors[page.state.scope] = page.next
            if not page.more:
                del cursors[page.state.scope]
    assert set(map(tuple, seen.values())) == {("first", "k1", "k2", "k3")}
    assert rounds <= 9


async def test_a_round_of_a_stream_holds_a_mebibyte_however_many_scopes_have_news(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    scopes = [f"big-{n}" for n in range(36)]
    for scope in scopes:
        await fill(house, 4, 256 * KIB, scope)
        await add_members(house.database, scope, "ann")
    rounds: list[list[FeedPage]] = []
    read = house.reader.pages

    async def noted(*ask: Any) -> list[FeedPage | None]:
        pages = await read(*ask)
        rounds.append([page for page in pages if page is not None])
        return pages

    monkeypatch.setattr(house.reader, "pages", noted)
    async with stream(house, *(Cursor(scope, "", 0) for scope in scopes)) as reader:
        await wait_until(lambda: len(reader.changes()) >= 5 * len(scopes))
        sent = {scope: [at for name, at in reader.places() if name == scope] for scope in scopes}
    assert max(sum(octets_of(page.changes) for page in pages) for pages in rounds) <= PAGE_OCTETS
    assert set(map(tuple, sent.values())) == {(1, 2, 3, 4, 5)}


async def test_a_stream_with_news_in_more_scopes_than_it_reads_at_once_tells_all(house: House) -> None:
    scopes = [f"scope-{n:03}" for n in range(450)]
    async with house.database.transaction() as conn:
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
    async with stream(house, *(Cursor(scope, "", 0) for scope in scopes)) as reader:
        await wait_until(lambda: len(reader.changes()) >= 450)
        assert sorted(key for key, _ in reader.changes()) == scopes


async def test_readers_of_very_many_scopes_do_not_make_one_statement(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair_reads, "_READS_PER_STATEMENT", 4)
    for n in range(6):
        await house.publish("a", scope=f"s{n}")
    wanted = [[Cursor(f"s{n}") for n in range(count)] for count in (3, 2, 6, 1)]
    found = await asyncio.gather(*(house.reader.pages(APP, None, cursors, 9) for cursors in wanted))
    assert [[keys(page) for page in pages if page] for pages in found] == [[["a"]] * n for n in (3, 2, 6, 1)]


async def test_streams_of_very_many_scopes_that_open_at_once_are_not_too_many_reads(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_HEADS_PER_STATEMENT", 500)
    await house.publish("a", scope="s7")
    names = [f"s{n}" for n in range(2_000)]
    found = await asyncio.gather(*(house.reader.heads(APP, None, names) for _ in range(20)))
    assert [[state.scope for state in states if state] for states in found] == [["s7"]] * 20
    assert {len(states) for states in found} == {2_000}


async def test_a_value_larger_than_a_page_is_a_page_of_its_own(house: House, database_urls: DatabaseUrls) -> None:
    await fill(house, 2, LARGEST)
    # As one that was written before values were bounded by what readers get.
    await run_sql(database_urls.owner_url, "ALTER TABLE changes DROP CONSTRAINT changes_value_octets")
    async with house.database.transaction() as conn:
        await conn.execute("UPDATE changes SET value = to_jsonb(repeat(E'\\n', 600000)) WHERE key = 'k1'")
    pages = await all_pages(house)
    assert [keys(page) for page in pages] == [["first"], ["k1"], ["k2"]]
    async with stream(house, Cursor("couple", "", 0)) as reader:
        await until(lambda: said(reader.changes()))
        assert [key for key, _ in reader.changes()] == ["first", "k1", "k2"]


async def said(changes: list[tuple[str, int]]) -> bool:
    return len(changes) == 3
