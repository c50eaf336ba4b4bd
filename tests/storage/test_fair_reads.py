"""Who reads much takes turns with who reads little, however many calls it makes at once."""

from __future__ import annotations

import asyncio

import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.fair_reads import PAGE_OCTETS, PageRequest, Pages, round_robin
from syncbeat_server.sync.model import Cursor
from tests.fakes import FakeClock
from tests.storage.house import House, keys
from tests.storage.stage import APP, add_members, couple
from tests.storage.test_page_sizes import KIB, fill, octets_of

pytestmark = pytest.mark.usefixtures("database", "clock")


@pytest.fixture
async def house(database: Database, clock: FakeClock) -> House:
    await couple(database)
    house = House(database, clock)
    for scope, user_id in (("much", "ann"), ("also much", "eve"), ("little", "dan")):
        await fill(house, 8 if "much" in scope else 1, 250 * KIB if "much" in scope else 100, scope)
        await add_members(database, scope, user_id)
    return house


def ask(user_id: str | None, deferrals: int = 0, app_id: str = APP) -> PageRequest:
    return PageRequest(app_id, user_id, (Cursor("s"),), 10, deferrals)


def test_order_of_asks_goes_round_the_callers() -> None:
    asks = [*(ask("ann") for _ in range(4)), ask("bob"), ask("eve"), ask("bob"), ask("ann", app_id="other")]
    assert round_robin(asks, {}) == [0, 4, 5, 7, 1, 6, 2, 3]


def test_order_of_asks_of_one_caller_begins_with_what_was_passed_over_most() -> None:
    asks = [ask("ann", 1), ask("ann", 3), ask("bob"), ask("ann", 2)]
    assert round_robin(asks, {}) == [1, 2, 3, 0]


def test_order_of_callers_begins_with_who_was_served_longest_ago() -> None:
    asks = [ask("ann", 9), ask("bob"), ask("eve"), ask(None, 2)]
    assert round_robin(asks, {(APP, "ann"): 2, (APP, "bob"): 1}) == [3, 2, 1, 0]


@pytest.mark.parametrize("scope", ["much", "also much"])
async def test_caller_with_a_hundred_large_lists_takes_turns_with_who_has_one(house: House, scope: str) -> None:
    """Both lists of the same feed and of others, by somebody else."""
    await add_members(house.database, "much", "eve")
    answered: list[str] = []

    async def read(user_id: str, scope: str) -> None:
        (page,) = await house.reader.pages(APP, user_id, [Cursor(scope)], 100)
        assert page is not None
        assert keys(page)
        answered.append(user_id)

    await asyncio.gather(*(read("ann", "much") for _ in range(100)), read("eve", scope), read("dan", "little"))
    assert len(answered) == 102
    assert answered.index("dan") <= 2
    assert answered.index("eve") <= 4, answered[:10]


async def test_answers_of_one_batch_to_one_caller_fit_in_a_page(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    read = house.reader._read_pages

    async def noted(asks: list[PageRequest]) -> list[Pages | None]:
        answers = list(await read(asks))
        told = [page for answer in answers if answer is not None for page in answer if page is not None]
        batches.append(sum(octets_of(page.changes) for page in told))
        return answers

    monkeypatch.setattr(house.reader._pages, "_work", noted)
    pages = await asyncio.gather(*(house.reader.pages(APP, "ann", [Cursor("much")], 100) for _ in range(20)))
    assert {len(page.changes) for of_one in pages for page in of_one if page is not None} == {5}
    assert max(batches) <= PAGE_OCTETS
    assert len(batches) == 20


async def test_large_answers_leave_the_loop_one_after_the_other(house: House) -> None:
    """Those of many callers to whom one read brought the same page: each is put on the wire by itself."""
    users = [f"user-{n}" for n in range(20)]
    await add_members(house.database, "much", *users)
    turns: list[int] = []
    turn = 0
    done = asyncio.Event()

    async def count() -> None:
        nonlocal turn
        while not done.is_set():
            turn += 1
            await asyncio.sleep(0)

    async def read(user_id: str) -> None:
        await house.reader.pages(APP, user_id, [Cursor("much")], 100)
        turns.append(turn)

    counting = asyncio.ensure_future(count())
    await asyncio.gather(*(read(user_id) for user_id in users))
    done.set()
    await counting
    assert len(set(turns)) == len(users)
