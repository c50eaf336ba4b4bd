"""Tests fair reads: callers who read much take turns with those who read little, however many calls they make."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.fair_sharing import PAGE_OCTETS, PageRequest, Pages, round_robin
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.model import Cursor
from tests.support.build import APP, SyncFeature
from tests.support.fake_clock import FakeClock
from tests.support.seed import add_members, couple
from tests.support.sync_streams import keys
from tests.sync.test_page_sizes import KIB, fill, octets_of

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    sync = SyncFeature(database, clock)
    for scope, user_id in (("much", "ann"), ("also much", "eve"), ("little", "dan")):
        await fill(sync, 8 if "much" in scope else 1, 250 * KIB if "much" in scope else 100, scope)
        await add_members(database, scope, user_id)
    return sync


def ask(user_id: str | None, deferrals: int = 0, app_id: str = APP) -> PageRequest:
    return PageRequest(app_id, user_id, (Cursor("s"),), 10, deferrals)


def test_page_sizes_round_robin_over_callers() -> None:
    asks = [*(ask("ann") for _ in range(4)), ask("bob"), ask("eve"), ask("bob"), ask("ann", app_id="other")]
    assert round_robin(asks, {}) == [0, 4, 5, 7, 1, 6, 2, 3]


def test_page_sizes_order_within_a_caller_is_by_times_skipped() -> None:
    asks = [ask("ann", 1), ask("ann", 3), ask("bob"), ask("ann", 2)]
    assert round_robin(asks, {}) == [1, 2, 3, 0]


def test_page_sizes_serve_the_least_recently_served_first() -> None:
    asks = [ask("ann", 9), ask("bob"), ask("eve"), ask(None, 2)]
    assert round_robin(asks, {(APP, "ann"): 2, (APP, "bob"): 1}) == [3, 2, 1, 0]


@pytest.mark.parametrize("scope", ["much", "also much"])
async def test_page_sizes_of_many_large_lists_alternate_with_one(sync: SyncFeature, scope: str) -> None:
    """Both lists of the same feed and of others, by somebody else."""
    await add_members(sync.database, "much", "eve")
    answered: list[str] = []

    async def read(user_id: str, scope: str) -> None:
        (page,) = await sync.reader.pages(APP, user_id, [Cursor(scope)], 100)
        assert page is not None
        assert keys(page)
        answered.append(user_id)

    await asyncio.gather(*(read("ann", "much") for _ in range(100)), read("eve", scope), read("dan", "little"))
    assert len(answered) == 102
    assert answered.index("dan") <= 2
    assert answered.index("eve") <= 4, answered[:10]


class NotedReader(FeedReader):
    """Notes the octets that each batch was answered with."""

    def __init__(self, database: Database) -> None:
        self.batches: list[int] = []
        super().__init__(database)

    async def _read_pages(self, requests: Sequence[PageRequest]) -> Sequence[Pages | None]:
        answers = await super()._read_pages(requests)
        told = [page for answer in answers if answer is not None for page in answer if page is not None]
        self.batches.append(sum(octets_of(page.changes) for page in told))
        return answers


async def test_page_sizes_of_one_caller_in_a_batch_fit_a_page(sync: SyncFeature) -> None:
    reader = NotedReader(sync.database)
    pages = await asyncio.gather(*(reader.pages(APP, "ann", [Cursor("much")], 100) for _ in range(20)))
    assert {len(page.changes) for of_one in pages for page in of_one if page is not None} == {5}
    assert max(reader.batches) <= PAGE_OCTETS
    assert len(reader.batches) == 20


async def test_page_sizes_large_answers_yield_the_loop(sync: SyncFeature) -> None:
    """Those of many callers to whom one read brought the same page: each is put on the wire by itself."""
    users = [f"user-{n}" for n in range(20)]
    await add_members(sync.database, "much", *users)
    turns: list[int] = []
    turn = 0
    done = asyncio.Event()

    async def count() -> None:
        nonlocal turn
        while not done.is_set():
            turn += 1
            await asyncio.sleep(0)

    async def read(user_id: str) -> None:
        await sync.reader.pages(APP, user_id, [Cursor("much")], 100)
        turns.append(turn)

    counting = asyncio.ensure_future(count())
    await asyncio.gather(*(read(user_id) for user_id in users))
    done.set()
    await counting
    assert len(set(turns)) == len(users)
